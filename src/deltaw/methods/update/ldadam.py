"""LDAdam: Adam in a subspace that moves at every step, with its moments and with the error fed back."""

from __future__ import annotations

from . import update
from .algebra import Adam, Feedback, MatrixUpdate, Move12, Power, Side, Sub


@update(paper="arXiv:2410.16103")
class LDAdam(MatrixUpdate):
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
        frame, adam = Side(self.r, Power()), Adam(self.betas, self.eps)
        return Sub(frame, adam, Feedback(self.betas[0]), Move12(self.rho), every=1)
