"""LDAdam: Adam in a subspace that moves at every step, with its moments and with the error fed back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Feedback, Move12, Power, Side, Sub, matrices


@update(paper="arXiv:2410.16103")
class LDAdam:
    """P <- qr(M Mᵀ P), M = rho up(m̂) + (1 - rho) G; m and v move along; W <- W - lr P Adam(Pᵀ G); what neither G nor m could bring
    into the new frame, E = (I - P Pᵀ)(G + beta1 / (1 - beta1) up_old(m)), is added to the next gradient.

    State of an m x n matrix, m <= n: m r + 2 n r numbers and E, m n. Source: Robert et al. 2024, and their code, which keeps E in
    `.grad` (no checkpoint has it); here it is state. Square matrices have the frame on the right, there on the left. Trap: with E it
    saves one of Adam's two matrices, not more, and gradient clipping sees G without E.
    """

    r: int | float = 16
    rho: float = 0.908
    betas: tuple[float, float] = (0.908, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        return Sub(
            Side(self.r, Power()), Adam(self.betas, self.eps), Feedback(self.betas[0]), Move12(self.rho), every=1
        )

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix: frame, two moments, the error."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return matrices(self.rule(), named, lr, about, **{"weight_decay": self.weight_decay, **kw})
