"""SwitchLoRA by hand, with lists of candidates and their numbers, as the authors keep them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.rules.switchlora import SwitchLoRA

from ...laws.base import close, must
from ...restarts import Run
from ..hand import adam

STEPS, R, REST = 17, 8, 2


def check() -> str:
    for m, n in ((14, 12), (12, 14)):
        follow(Run(SwitchLoRA(every=4, decay=10**9, rest=REST), m, n, R, 1.0, update="switchlora", init="switchlora"))
    return f"closed form, {STEPS} steps of two switches in each factor, tall and wide"


class Side:
    """Vectors in the rows of t (columns of B as rows), the whole list of candidates, which of them is in which slot."""

    def __init__(self, t: Tensor, pool: Tensor, first: int):
        q, r = len(pool) + len(t), len(t)
        self.t, self.slot, self.rest = t, first, torch.zeros(r)
        self.adam = {word: torch.zeros_like(t) for word in "mvt"}
        self.chosen = [q - r + (i - first) % r for i in range(r)]
        self.candidates = torch.cat([pool, torch.zeros_like(t)])

    def switch(self, other: Side, c: int) -> Tensor:
        """sum of (old - new) partner: what W gets, over s."""
        moved: Any = 0
        for _ in range(c):
            i, new = self.slot, (self.chosen[self.slot - 1] + 1) % len(self.candidates)
            moved = moved + torch.outer(self.t[i] - self.candidates[new], other.t[i])
            self.candidates[self.chosen[i]], self.t[i], self.chosen[i] = (
                self.t[i].clone(),
                self.candidates[new].clone(),
                new,
            )
            for state in other.adam.values():
                state[i] = 0
            other.rest[i], self.slot = REST, (i + 1) % R
        return moved  # type: ignore[no-any-return]

    def step(self, g: Tensor, lr: float) -> None:
        g = g * (self.rest[:, None] <= 0)
        self.t = self.t - adam(g, self.adam, lr)
        self.rest = (self.rest - 1).clamp(min=0)


def follow(run: Run) -> None:
    (B, A), memory, s = run.factors(), run.memory(), run.s
    must(len(memory["pool.A"]) == min(run.m, run.n) - R, "the pools hold what is not in use")
    a, b = Side(A, memory["pool.A"], 0), Side(B.T.clone(), memory["pool.B"], R // 2)
    W = run.W0 - s * B @ A
    close("the start", run.weight(), run.W0, 1e-12)
    for k in run.steps(STEPS):
        G = run.gradient(W + s * b.t.T @ a.t)
        gA, gB = s * b.t @ G, s * a.t @ G.T  # of the vectors before the switch
        W = W + s * a.switch(b, 2).T
        W = W + s * b.switch(a, 2)
        a.step(gA, run.lr)
        b.step(gB, run.lr)
        close(f"A after step {k + 1}", run.factors()[1], a.t, 1e-9)
        close(f"B after step {k + 1}", run.factors()[0], b.t.T, 1e-9)
        close(f"W' after step {k + 1}", run.weight(), W + s * b.t.T @ a.t, 1e-9)
