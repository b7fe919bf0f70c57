"""IncreLoRA: every so often the sites whose update matters most take over their reserve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from ..rank import allocators, scores
from . import Rule, rule


@rule(paper="arXiv:2308.12043")
class IncreLoRA(Rule):
    """At step t (from 0), while the total rank is below target_r a site: x = sum |dW * G| / sqrt(m n), dW the update and G = dL/dW',
    I <- beta I + (1 - beta) x, U <- beta U + (1 - beta) |x - I|, score I U. If t > warmup and t mod every = 0, after it the h best sites (fewer
    where the budget ends) grow by their reserve: its gates become trained, a fresh reserve is drawn, R <- R + q, and B <- B (R + q) / R
    with its moments turned, so that the old terms go on as they were under the smaller s. In the end the reserves' gates are 0.

    Loss: + orth_reg_weight times the mean over the factors of |A Aᵀ - I|_F. New terms start anew (update slot_adamw). Source: Zhang et al.
    2023, their code. Differs: the total never exceeds target_r a site; the rescaling. Trap: G costs m x n numbers a site while it grows.
    """

    target_r: int = 8
    h: int = 3
    every: int = 100
    warmup: int = 100
    orth_reg_weight: float = 0.1
    beta: float = 0.85

    allocates, update = True, "slot_adamw"

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"I": torch.zeros_like(view.p.R), "U": torch.zeros_like(view.p.R), "open": torch.ones((), dtype=torch.bool)}

    def watches(self, view: Any) -> bool:
        return bool(view.s["open"])

    def before_all(self, views: list[Any]) -> None:
        slots.orthogonalise(views, self.orth_reg_weight)
        for v in views if views[0].s["open"] else []:
            x = ((v.weight() - v.base()) * v.gradient()).abs().sum() / v.base().numel() ** 0.5
            scores.smooth(v.s["I"], v.s["U"], x.to(v.s["I"]), self.beta, self.beta)

    def after_all(self, views: list[Any]) -> None:
        t, q, all_ = views[0].step - 1, views[0].p.c_r.numel(), self.target_r * len(views)
        left = all_ - sum(slots.count(v) for v in views)
        if views[0].s["open"] and t > self.warmup and t % self.every == 0 and left >= q:
            chosen = allocators.best({v.name: float(v.s["I"] * v.s["U"]) for v in views}, min(self.h, left // q))
            for v in [v for v in views if v.name in chosen]:
                slots.adopt(v, float(v.p.R), q)
            left -= q * len(chosen)
            views[0].tell(f"increlora: {len(chosen)} sites grew by {q}; {all_ - left} of {all_} terms")
        if left < q and views[0].s["open"]:
            for v in views:
                v.s["open"].fill_(False)
                v.set("c_r", torch.zeros_like(v.p.c_r))
