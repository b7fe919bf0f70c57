"""LoRAPrune's masks: the units of each block that matter least, more and more of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from .. import pruning
from ..rank import budgets
from . import Rule, rule


@rule(paper="arXiv:2305.18403")
class LoRAPrune(Rule):
    """Before every step S = |(G_B A + B G_A - G_B G_A) * (W + s B A)|, summed over each unit, divided by the vector's norm, added over the
    projections of a block (attention or MLP): I <- 0.9 I + 0.1 that; a step with NaN is left out. Every `every` steps the floor(units rho)
    units of lowest I of each block are masked, among them all masked before; rho = ratio (1 - (1 - p)³), p from 0 to 1 between 10 % and 90 % of
    the run. The first 10 % of layers and the last one are never pruned.

    Memory: I (units,) at each site. Source: Zhang et al. 2024 and its code. T = 0: the run's length.
    """

    ratio: float = 0.5
    every: int = 10
    head: int = 64
    T: int = 0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        if not 0 < self.ratio < 1:
            raise SpecError(f"loraprune removes a share between 0 and 1; found {self.ratio}")
        return {"I": torch.zeros(max(view.base().shape), device=view.p.B.device), "T": torch.tensor(self.T or view.total)}

    def before_all(self, views: list[Any]) -> None:
        for members in pruning.groups(views, self.head).values():
            total = sum((pruning.normalised(*m) for m in members[1:]), pruning.normalised(*members[0]))
            if bool(torch.isfinite(total).all()):
                for v, _, _ in members:
                    v.s["I"][: len(total)] = 0.9 * v.s["I"][: len(total)] + 0.1 * total

    def after_all(self, views: list[Any]) -> None:
        T, step, layers = self.T or views[0].total, views[0].step, views[0].order[1]
        if step % self.every:
            return
        rho, gone, all_ = self.ratio * (1 - (1 - budgets.part(step, 0.1 * T, 0.9 * T)) ** 3), 0, 0
        for members in pruning.groups(views, self.head).values():
            layer = members[0][0].order[0]
            view, _, each = next(m for m in members if m[0].name.endswith(("v_proj", "up_proj")))
            alive = view.p.u.view(-1, each)[:, 0]
            count = int(len(alive) * rho) if 0.1 * layers <= layer < layers - 1 else 0
            lowest = (view.s["I"][: len(alive)] * alive).argsort(stable=True)[:count]
            pruning.masked(members, torch.ones_like(alive).index_fill(0, lowest, 0.0))
            gone, all_ = gone + count, all_ + len(alive)
        views[0].tell(f"loraprune: {gone} of {all_} heads and neurons masked")
