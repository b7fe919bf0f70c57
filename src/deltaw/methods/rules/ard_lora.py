"""ARD-LoRA's terms of the loss: few terms, and no jumps from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from . import Rule, rule


@rule(paper="arXiv:2506.18267")
class ARDLoRA(Rule):
    """Loss: + lam (sum |alpha| + beta sum |alpha - alpha of the step before|) over all sites and heads. Memory: alpha of the step before.

    A reading of the abstract (an l1 term for small ranks, total variation in time for steady ones); the weights are ours.
    """

    lam: float = 1e-3
    beta: float = 0.1

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"last": view.p.alpha.detach().clone()}

    def before_all(self, views: list[Any]) -> None:
        def loss(free: list[Tensor]) -> Tensor:
            terms = [a.abs().sum() + self.beta * (a - v.s["last"]).abs().sum() for a, v in zip(free, views)]
            return torch.stack(terms).sum() * self.lam

        slots.penalise([v.p.alpha for v in views], loss)
        for v in views:
            v.s["last"] = v.p.alpha.detach().clone()

    def after_all(self, views: list[Any]) -> None:
        if views[0].step % 50 == 0 or views[0].step == views[0].length:
            ranks = [v.method.live(v.p) for v in views]
            views[0].tell(f"ard_lora: ranks {min(ranks)} to {max(ranks)}, {sum(ranks)} in all")
