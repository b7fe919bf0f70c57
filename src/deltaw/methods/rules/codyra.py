"""CoDyRA's ladder: first a part of the run without thresholds, then one that rises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from ..rank import budgets
from . import Rule, rule


@rule(paper="arXiv:2412.01004")
class CoDyRA(Rule):
    """After step t > dense T: c <- sign(c) max(|c| - k, 0), k one of `rungs` values from 0 to kappa, each for an equal part of what is left.

    Source: Lu et al. and its code, whose in-place form zeroes all |c| < 2 k; this is the proximal step. T = 0: the run's length.
    """

    kappa: float = 0.005
    rungs: int = 10
    dense: float = 0.5
    T: int = 0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"live": torch.tensor(slots.count(view)), "T": torch.tensor(self.T or view.total)}

    def after_all(self, views: list[Any]) -> None:
        T = self.T or views[0].total
        p = budgets.part(views[0].step, self.dense * T, T)
        if p > 0:
            slots.threshold(views, self.kappa * budgets.rung(p, self.rungs) / max(self.rungs - 1, 1), "codyra")
