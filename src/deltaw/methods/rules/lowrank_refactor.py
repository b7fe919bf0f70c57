"""Weight refactorisation and momentum reset for products of two thin factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...lowrank import LowRankMatrix
from . import Rule, View, rule


@rule(paper="arXiv:2505.22922")
class Refactor(Rule):
    """After every `every`-th step, for a method whose tensors A (r, n), B (m, r) act through B A: with B = Q_B R_B, Aᵀ = Q_A R_A
    and the SVD R_B R_Aᵀ = P diag(S) Qᵀ, B <- Q_B P sqrt(S), A <- sqrt(S) Qᵀ Q_Aᵀ. The function stays, B and A are balanced.

    Both start with fresh moments and counters then, since the old ones belong to other coordinates, and the next `recovery`
    steps go 0.001, ..., 1 of the way (linearly). Source: Glentis et al. 2025; the way back as in its code, periods, and
    whether second moments are reset too, are our reading: the code there has neither trick.
    Trap: modules that are trained in full beside the products keep their moments and their rate.
    """

    every: int = 200
    recovery: int = 10

    def start(self, view: View) -> dict[str, Tensor]:
        if not {"A", "B"} <= set(view.p.names()):
            return {}  # a module that is trained as it is, beside the products
        A, B = view.p.A, view.p.B
        if A.dim() != 2 or B.dim() != 2 or B.shape[1] != A.shape[0] or A.shape[0] > min(A.shape[1], B.shape[0]):
            raise SpecError(f"{view.name}: only a product B A of rank r <= m, n can be balanced; found {view.method}")
        return {"since": torch.tensor(self.recovery)}

    def before_all(self, views: list[Any]) -> None:
        products = [view for view in views if "since" in view.s]
        if not products:
            raise SpecError(f"lowrank_refactor is for products B A; {views[0].method} at {views[0].name} has none")
        for view in products:
            if (done := int(view.s["since"])) < self.recovery:
                for name in "AB":
                    view.damp(name, 0.001 + 0.999 * done / max(self.recovery - 1, 1))

    def after(self, view: View) -> None:
        if "since" not in view.s:
            return
        view.s["since"] += 1
        if view.step % self.every == 0:
            balanced = LowRankMatrix(view.p.B, view.p.A).balanced()
            for name, t in (("B", balanced.B), ("A", balanced.A)):
                view.set(name, t, restart=True)
            view.s["since"].zero_()
