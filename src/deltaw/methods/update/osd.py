"""Online Subspace Descent: GaLore whose frame learns instead of being computed."""

from __future__ import annotations

from torch import nn

from . import update
from .algebra import HF_ADAM, Adam, MatrixUpdate, Online, Sub, Svd, Word, inner


@update(paper="arXiv:2408.12857")
class OSD(MatrixUpdate):
    """P from the SVD of the first gradient; W <- W - lr scale P Adam(Pᵀ G); then P takes one step of AdamW, at rate `rate` lr / lr0, on
    |P Pᵀ Ĝ - Ĝ|², Ĝ = G / |G|.

    lr0: the rate the optimiser was made with. State of an m x n matrix, m <= n: m r + 2 n r + 2 m r numbers. Source: Liang et al.
    2024 (NeurIPS), and their code: AdamW on P with weight decay 0.01; the paper's term |PᵀP - I|² is not in the code, nor here. Trap: P leaves
    the orthonormal matrices, so up(down G) is no projection.
    """

    r: int | float = 128
    rate: float = 1 / 200
    scale: float = 0.25
    frame_decay: float = 0.01
    by: Word = "adam"
    weight_decay: float = 0.0

    def rule(self, lr0: float = 0.0) -> Sub:
        frame = Online(self.r, Svd(), by=inner(self.by, Adam()), rate=self.rate, decay=self.frame_decay, lr0=lr0)
        return Sub(frame, HF_ADAM, every=0, scale=self.scale, decay="after")

    def of(self, name: str, p: nn.Parameter, lr: float) -> Sub:
        return self.rule(lr)
