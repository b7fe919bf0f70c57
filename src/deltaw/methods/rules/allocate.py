"""Allocate: a budget of entries of all weights together, handed out by importance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Rule, View, rule


def shares(score: Tensor, budget: int, room: Tensor) -> Tensor:
    """`budget` (at most sum(room)) as whole numbers in proportion to the scores, none above its room: what does not fit goes
    to the others, again in proportion; equal parts where no score is left."""
    got = torch.zeros_like(room, dtype=torch.float64)
    for _ in range(len(room)):  # each round either places all or fills one
        free = got < room
        part = score.double() * free
        part = part if part.sum() > 0 else free.double()
        got = torch.minimum(got + (budget - got.sum()).clamp(min=0) * part / part.sum().clamp(min=1e-300), room.double())
    whole = (got + 1e-6).floor().long()
    for i in (got - whole).argsort(descending=True, stable=True).tolist() * 2:
        whole[i] += bool(whole.sum() < budget and whole[i] < room[i])
    return whole


@rule(paper="arXiv:2510.24037")
class Allocate(Rule):
    """Each site keeps V of its m n entries. Before a step, for t = P and Q: I = |t ⊙ dL/dt|, A <- beta1 A + (1 - beta1) I,
    U <- beta2 U + (1 - beta2)|I - A|. After step e · every, e = 1..T, the sites share the budget, (1 - rho_e) of all entries,
    in proportion to mean(A ⊙ U) of P plus that of Q; rho_e = sparsity (1 - (1 - (e - t0)/(T - t1 - t0))³): 0 until t0, at
    `sparsity` for the last t1.
    """

    sparsity: float = 0.3
    every: int = 100
    T: int = 100
    t0: int = 0
    t1: int = 0
    beta1: float = 0.85
    beta2: float = 0.85

    def dropped(self, e: int) -> float:
        """rho_e."""
        left = 1.0 - min(max((e - self.t0) / max(self.T - self.t1 - self.t0, 1), 0.0), 1.0)
        return self.sparsity * (1.0 - left**3)

    def start(self, view: View) -> dict[str, Tensor]:
        return {f"{w}.{k}": torch.zeros_like(getattr(view.p, k)) for w in ("A", "U") for k in "PQ"}

    def before(self, view: View) -> None:
        for k in "PQ":
            t = getattr(view.p, k)
            if t.grad is not None:
                new, A, U = (t * t.grad).abs().nan_to_num(0.0), view.s[f"A.{k}"], view.s[f"U.{k}"]
                A.lerp_(new, 1.0 - self.beta1)
                U.lerp_((new - A).abs(), 1.0 - self.beta2)

    def after_all(self, views: list[Any]) -> None:
        e, between = divmod(views[0].step, self.every)
        if between or e > self.T:
            return
        score = torch.stack([sum((v.s[f"A.{k}"] * v.s[f"U.{k}"]).mean() for k in "PQ").cpu() for v in views])
        room = torch.tensor([v.p.Q.shape[1] * v.p.P.shape[1] for v in views])
        kept = shares(score, int((1.0 - self.dropped(e)) * int(room.sum())), room)
        for view, count in zip(views, kept):
            view.set("V", count.to(view.p.V))
