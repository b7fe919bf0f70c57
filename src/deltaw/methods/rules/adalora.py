"""AdaLoRA's schedule: the least important terms of all sites together are gated off, down to a budget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from .. import slots
from ..rank import allocators, budgets
from . import Rule, rule


@rule(paper="arXiv:2303.10512")
class AdaLoRA(Rule):
    """After step t (from 0) < T - tfinal, for every number x of the factors: s = |x dL/dx|, I <- beta1 I + (1 - beta1) s,
    U <- beta2 U + (1 - beta2) |s - I|; a term's score is I U of its gate plus the means of I U over its two vectors. Every deltaT
    steps after tinit, and at t = T - tfinal, the gates of all but the b(t) best of all sites become 0, b = target + (all - target)
    (1 - (t - tinit) / (T - tfinal - tinit))³, target = target_r a site. Afterwards the same ones are held at 0; before, Adam may revive one.

    Loss: + orth_reg_weight times the mean over the factors of |PᵀP - I|_F. Memory: I, U of every number, (r,) who lives. T = 0: the run's.
    Source: Zhang et al. 2023; arithmetic and defaults of HF PEFT. Trap: ties prune more than asked; the penalty comes after clipping.
    """

    target_r: int = 8
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    T: int = 0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        r, g = slots.count(view), getattr(view.p, slots.gate(view))
        if self.target_r < r and (end := (self.T or view.total) - self.tfinal) <= self.tinit:
            raise SpecError(f"adalora prunes from step {self.tinit} to T - tfinal = {end}: a longer run, or smaller ones of these")
        return slots.remembered(view) | {"live": torch.ones(r, dtype=torch.bool, device=g.device)}

    def before_all(self, views: list[Any]) -> None:
        slots.orthogonalise(views, self.orth_reg_weight)

    def after_all(self, views: list[Any]) -> None:
        t, total = views[0].step - 1, sum(len(v.s["live"]) for v in views)
        if self.target_r * len(views) >= total:
            return
        end = (self.T or views[0].total) - self.tfinal
        if t < end:
            slots.listen(views, self.beta1, self.beta2)
        if self.tinit < t <= end and (t == end or t % self.deltaT == 0):
            budget = budgets.cubic_down(total, self.target_r * len(views), budgets.part(t, self.tinit, end))
            live = allocators.keep_top(slots.sensitive(views), budget)
            views[0].tell(f"adalora: {sum(int(k.sum()) for k in live.values())} of {total} terms live")
            slots.remember(views, live)
        elif t > end:
            slots.hold(views)
