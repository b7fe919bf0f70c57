"""SwitchLoRA: rows of A and columns of B are exchanged for others all the time, one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ..restarts import restarted
from ..switching import due, hold, pools, switch
from . import Rule, rule


@rule(paper="arXiv:2406.06564")
class SwitchLoRA(Rule):
    """Before step t = 0, 1, ... c rows of A and c columns of B are switched, c = r rho(t) / every on average, rho(t) =
    0.3^((t + 1) / decay) (decay: about a tenth of all steps). Row a_i for p: W <- W + s b_i (a_i - p), so W' stays; a_i goes to
    the end of its pool, p comes from the front; its partner b_i loses its optimiser state and rests for `rest` steps. Columns of B alike.

    Memory: pools (q - r) x n and (q - r) x m, q = min(m, n), how long each vector rests, two pointers. Slots take turns,
    A's from 0, B's from r / 2; c is cut so that no resting partner is switched. Source: Zhou et al. 2024; as in their code.
    Use it with init="switchlora", update="switchlora" (step counts per vector).
    Trap: it is the partner's state that is stale (dL/db_i = s G a_i), not that of the vector that was switched.
    """

    every: int = 40
    decay: int = 4000
    rest: int = 5

    def start(self, view: Any) -> dict[str, Tensor]:
        if not 1 <= self.rest <= self.every / 2 or self.decay < 1:
            raise SpecError(
                f"switchlora: 1 <= rest <= every / 2, since one of two partners can rest; decay >= 1; found {self}"
            )
        if not {"A", "B"} <= set(view.p.names()):
            return {}
        r = len(view.p.A)
        sizes = {"head": (), "slot": (), "rest.A": (r,), "rest.B": (r,)}
        return {**pools(view), **{k: torch.zeros(size, dtype=torch.long) for k, size in sizes.items()}}

    def before_all(self, views: list[Any]) -> None:
        for view in restarted(views, "switchlora"):
            switch(view, due(view, self.every, self.decay), self.rest)
            for name, axis in (("A", 0), ("B", 1)):  # a rest of full length has just begun
                rest = view.s[f"rest.{name}"]
                hold(view, name, axis, rest == self.rest, rest > 0)

    def after_all(self, views: list[Any]) -> None:
        for view in restarted(views, "switchlora"):
            for name in "AB":
                view.s[f"rest.{name}"].sub_(1).clamp_(min=0)
