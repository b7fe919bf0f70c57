"""AdamW that counts the steps of every vector of the factors for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from . import NOTHING, About, update
from .algebra import Plain, SubOptimizer, Unit
from .algebra.vectors import Vectors


@update(paper="arXiv:2406.06564")
class SwitchLoRA:
    """torch's AdamW, where every row of A and every column of B has its own step count t in 1 - beta^t.

    With the rule `switchlora` a vector whose partner was switched starts again alone, its count at 0. Without such a rule
    it is AdamW. State: 2 r (m + n) moments and 2 r counts. What is no factor: AdamW. Source: Zhou et al. 2024, their
    optimiser. Trap: a vector's count goes on while it rests, so its first moves are shorter than lr.
    """

    weight_decay: float = 0.0
    pairs: ClassVar[bool] = True

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for the two factors of an m x n matrix."""
        return 2 * r * (m + n) + 2 * r

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> SubOptimizer:
        rules = {"A": Vectors(0), "B": Vectors(1)}
        units = [
            Unit(k, rules.get(k.rpartition(".")[2], Plain()) if p.dim() == 2 else Plain(), {"W": p})
            for k, p in named.items()
        ]
        return SubOptimizer(named, units, lr, **{"weight_decay": self.weight_decay, **kw})
