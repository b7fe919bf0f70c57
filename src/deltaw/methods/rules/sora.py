"""SoRA's threshold: gates move towards 0 by a constant after every step, and stay there where they arrive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from ..rank import budgets
from . import Rule, rule


@rule(paper="arXiv:2311.11696")
class SoRA(Rule):
    """c <- sign(c) max(|c| - xi, 0) after every step, xi = lambda2; with a ladder of values each of them for an equal part of the
    run. Loss: + lam times the mean |c| over all gates.

    Source: Ding et al. 2023. Differs from their code, which subtracts xi in place and then zeroes |c| < xi, so that all below 2 xi
    become 0; this is the proximal step of the paper. Memory: none but the last count, for the log.
    Trap: both the penalty and the threshold pull; with lam = 0 only the threshold does.
    """

    lam: float = 10.0
    lambda2: float = 3e-4
    ladder: tuple[float, ...] = ()

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"live": torch.tensor(slots.count(view))}

    def before_all(self, views: list[Any]) -> None:
        if self.lam:
            slots.penalise([v.p.c for v in views], lambda free: self.lam * torch.cat([c.abs() for c in free]).mean())

    def after_all(self, views: list[Any]) -> None:
        xi = self.ladder[budgets.rung(views[0].step / views[0].total, len(self.ladder))] if self.ladder else self.lambda2
        slots.threshold(views, xi, "sora")
