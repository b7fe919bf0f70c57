"""Fira: GaLore plus the rest of the gradient, scaled as Adam scales the projected part."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import HF_ADAM, MatrixUpdate, Phi, Side, Solver, Sub, solver


@update(paper="arXiv:2410.01623")
class Fira(MatrixUpdate):
    """D = scale up(psi) + S, psi = m / (sqrt v + eps) in coordinates C; S = (G - scale up(C)) |psi_j| / |C_j|, cut so that |S| grows
    by 1 % a step.

    The ratio is per column where the frame is on the left, per row where it is on the right. State of an m x n matrix, m <= n:
    m r + 2 n r numbers. Source: Chen et al. 2024, and their code. Trap: for scale != 1 S holds a part of the projected gradient too
    (the code subtracts scale up(C)).
    """

    r: int | float = 128
    every: int = 200
    scale: float = 1.0
    growth: float = 1.01
    side: Literal["auto", "left", "right", "reverse"] = "auto"
    svd: Solver = "randomized"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        frame = Side(self.r, solver(self.svd), self.side)
        return Sub(frame, HF_ADAM, Phi(self.growth), every=self.every, scale=self.scale, decay="after")
