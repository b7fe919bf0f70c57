"""GoRA's ranks, for any init: by the importance of the weights for the gradient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...spec import Start
from ..init import INITS
from . import ranks


@ranks(paper="arXiv:2502.12171", needs=("gradient",))
class GoRA:
    """p = I / sum I, I = mean |W * G|; r_l = round(T p_l) // f(m + n) within [r_min, r_max], T = sum f(m + n) r: see the init gora, whose
    ranks these are, and which also starts the factors with a step of descent. Source: He et al. 2025 and its code.
    Trap: nothing keeps the sum of ranks at the plan's once the ends clip; look at `adapted.ranks()`.
    """

    r_min: int = 4
    r_max: int = 32
    importance: Literal["mean", "frobenius"] = "mean"
    features: Literal["identity", "sqrt", "log1p"] = "sqrt"

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Tensor]]) -> dict[str, int]:
        same = INITS["gora"](r_min=self.r_min, r_max=self.r_max, importance=self.importance, features=self.features)
        return {s.name: min(r, *s.W.shape) for s in starts for r in [same.ranks(starts, stats)[s.name]]}
