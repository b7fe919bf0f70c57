"""ReLoRA: train in low rank, move what was learned into the weight, start again: the sum is of high rank."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import SpecError
from ..restarts import fresh, pruned, restarted, warming
from . import Rule, rule


@rule(paper="arXiv:2307.05695")
class ReLoRA(Rule):
    """Every `every` optimiser steps W <- W + s B A, A and B start again (B = 0): W' is the same before and after. Every `cycle`
    steps (0: at every restart) a random share `prune` of the factors' moments becomes zero (1: all state is dropped, the step
    count too) and the rate warms up again over `restart_warmup` steps, by shorter moves under whatever schedule there is.

    W's change has rank <= r (restarts + 1). W itself is not written: the sum is a constant of the adapter (`offset`), exact in
    files, merges and exports. Source: Lialin et al. 2023; pruning and warm-up as in their code, which drops the entries of
    the two moments independently: here an entry loses both. `methods.restarts.jagged_cosine` is their schedule.
    Trap: it is a rule for long training after a full-rank start; with a fresh B the first steps after a restart move A not
    at all, so short cycles learn little.
    """

    every: int = 1000
    cycle: int = 0
    prune: float = 0.999
    restart_warmup: int = 50

    def start(self, view: Any) -> dict[str, torch.Tensor]:
        if (
            self.every < 1
            or self.cycle % self.every
            or not 0.0 <= self.prune <= 1.0
            or self.restart_warmup >= (self.cycle or self.every)
        ):
            raise SpecError(
                f"relora: a cycle is a number of restarts and longer than its warm-up, prune is a share; found {self}"
            )
        return {}

    def before_all(self, views: list[Any]) -> None:
        factor = warming(views[0].step, self.cycle or self.every, self.restart_warmup)
        for view in views if factor < 1.0 else ():
            for name in view.trained():
                view.damp(name, factor)

    def after_all(self, views: list[Any]) -> None:
        if views[0].step % self.every:
            return
        reset = views[0].step % (self.cycle or self.every) == 0
        for view in restarted(views, "relora"):
            B, A, s = view.factors()
            view.fold(s * B, A)
            for name in ("A", "B"):
                drop = pruned(view, name, self.prune) if reset and self.prune < 1.0 else None
                view.set(name, fresh(view, name), drop, restart=reset and self.prune == 1.0)
