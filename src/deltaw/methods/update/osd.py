"""Online Subspace Descent: GaLore whose frame learns instead of being computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Online, Sub, Svd, Word, inner, matrices


@update(paper="arXiv:2408.12857")
class OSD:
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
        return Sub(frame, Adam(eps=1e-6, convention="hf"), every=0, scale=self.scale, decay="after")

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix: frame, its moments, the coordinates' moments."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return matrices(self.rule(lr), named, lr, about, **{"weight_decay": self.weight_decay, **kw})
