"""APOLLO: SGD whose rows or columns have the step sizes that Adam has in a random projection."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import HF_ADAM, MatrixUpdate, Phi, Sketch, Sub


@update(paper="arXiv:2412.05270")
class Apollo(MatrixUpdate):
    """D = sqrt(scale) S, S = G |psi_j| / |C_j| by column (m < n) or row; C = down G with P ~ N(0, 1/r), psi = Adam(C); |S| grows by 1 % a
    step at most.

    State of an m x n matrix, m <= n: 2 n r numbers and a key (P is made again from it). per = "matrix", r = 1, scale = 128 is APOLLO-Mini.
    Source: Zhu et al. 2024, and their code (norm limiter before the scale, moments kept across refreshes). Trap: the frame only
    measures: the update has full rank.
    """

    r: int | float = 256
    every: int = 200
    scale: float = 1.0
    per: Literal["vector", "matrix"] = "vector"
    growth: float = 1.01
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        rest = Phi(self.growth, self.scale**0.5, self.per)
        return Sub(Sketch(self.r), HF_ADAM, rest, every=self.every, scale=0.0, decay="after")
