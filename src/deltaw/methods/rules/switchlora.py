"""SwitchLoRA: rows of A and columns of B are exchanged for others all the time, one by one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ..restarts import restarted
from ..switching import bounds, hold
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
        B, A, s = view.factors()
        (m, r), n = B.shape, A.shape[1]
        spare, (a, b) = max(min(m, n) - r, 0), bounds(m, n, r, s)
        pools = {
            "pool.A": view.draw("pool.A").uniform((spare, n), a),
            "pool.B": view.draw("pool.B").uniform((spare, m), b),
        }
        turns = {"head": torch.zeros((), dtype=torch.long), "slot": torch.zeros((), dtype=torch.long)}
        return (
            {k: v.to(A.dtype) for k, v in pools.items()}
            | turns
            | {f"rest.{k}": torch.zeros(r, dtype=torch.long) for k in "AB"}
        )

    def before_all(self, views: list[Any]) -> None:
        for view in restarted(views, "switchlora"):
            B, A, s = view.factors()
            r, spare = len(A), len(view.s["pool.A"])
            c = r / self.every * 0.3 ** ((view.step + 1) / self.decay)
            c = math.floor(c + 0.5 + 0.5 * float(view.draw("count").uniform((1,), 1.0)))
            c = min(c, r // 2 - int((view.s["rest.A"] > 0).sum()), spare)
            if c > 0:
                turn = torch.arange(c)
                taken, slot = (view.s["head"].cpu() + turn) % spare, int(view.s["slot"])
                self.switch(view, "A", A, B, s, (slot + turn) % r, taken)
                self.switch(view, "B", B.mT, A.mT, s, (slot + r // 2 + turn) % r, taken)
                view.s["head"], view.s["slot"] = (view.s["head"] + c) % spare, (view.s["slot"] + c) % r
            for name, axis in (("A", 0), ("B", 1)):  # a rest of full length has just begun
                rest = view.s[f"rest.{name}"]
                hold(view, name, axis, rest == self.rest, rest > 0)

    def switch(self, view: Any, name: str, t: Tensor, partner: Tensor, s: float, i: Tensor, taken: Tensor) -> None:
        """Rows i of t, which are rows of A or columns of B, against those of the pool."""
        pool, i = view.s[f"pool.{name}"], i.to(t.device)
        old, new = t[i].clone(), pool[taken.to(pool.device)].to(t)
        pair = (s * partner[:, i], old - new)
        view.fold(*(pair if name == "A" else (pair[1].mT, pair[0].mT)))
        t[i], pool[taken.to(pool.device)] = new, old.to(pool)
        view.s[f"rest.{'B' if name == 'A' else 'A'}"][i.to(view.s["rest.A"].device)] = self.rest

    def after_all(self, views: list[Any]) -> None:
        for view in restarted(views, "switchlora"):
            for name in "AB":
                view.s[f"rest.{name}"].sub_(1).clamp_(min=0)
