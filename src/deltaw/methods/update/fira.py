"""Fira: GaLore plus the rest of the gradient, scaled as Adam scales the projected part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Phi, Rsvd, Side, Sub, Svd, matrices


@update(paper="arXiv:2410.01623")
class Fira:
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
    svd: Literal["randomized", "exact"] = "randomized"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        frame = Side(self.r, Rsvd() if self.svd == "randomized" else Svd(), self.side)
        return Sub(
            frame, Adam(eps=1e-6, convention="hf"), Phi(self.growth), every=self.every, scale=self.scale, decay="after"
        )

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix: frame and two moments."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return matrices(self.rule(), named, lr, about, **{"weight_decay": self.weight_decay, **kw})
