"""PeriodicLoRA: unload the adapter into the weight after every stage, all of it or a part."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import SpecError
from ..restarts import fresh, restarted
from . import Rule, rule


@rule(paper="arXiv:2402.16141")
class PeriodicLoRA(Rule):
    """Every `every` optimiser steps W <- W + (1 - mu) s B A and (B, A) <- sqrt(mu) (B, A): W' is the same before and after, for
    every mu in [0, 1]. With mu = 0 the factors start anew (B = 0). The factors' optimiser state starts again.

    W's change has rank <= r (stages + 1); it is a constant of the adapter (`offset`), the base is not changed.
    Source: Meng et al. 2024. Reading: their momentum unloads a part of the adapter and keeps a part; public code keeps
    (1 - mu) of both factors beside mu s B A, which changes the function ((1 - mu)² + mu != 1); this is the form that does not.
    Trap: a schedule of its own for each stage comes from outside (torch's CosineAnnealingWarmRestarts(optimizer, every)).
    """

    every: int = 1000
    mu: float = 0.0

    def start(self, view: Any) -> dict[str, torch.Tensor]:
        if self.every < 1 or not 0.0 <= self.mu <= 1.0:
            raise SpecError(f"periodic_lora: a stage has at least one step and mu is a share; found {self}")
        return {}

    def after_all(self, views: list[Any]) -> None:
        if views[0].step % self.every:
            return
        for view in restarted(views, "periodic_lora"):
            B, A, s = view.factors()
            if self.mu < 1.0:
                view.fold((1.0 - self.mu) * s * B, A)
            for name, t in (("A", A), ("B", B)):
                view.set(name, self.mu**0.5 * t if self.mu else fresh(view, name), restart=True)
