"""GaLore: Adam on the gradient's projection onto a subspace that is chosen again every T steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Rsvd, Side, Sub, Svd, TwoSided, Word, inner, matrices


@update(paper="arXiv:2403.03507")
class GaLore:
    """P = leading singular vectors of G (left if m < n, else right), C = Pᵀ G; W <- W - lr · scale · P Adam(C).

    Moments are kept when P changes. Optimiser state of an m x n matrix, m <= n: m r + 2 n r numbers (Adam: 2 m n). Embeddings, the
    head, vectors: AdamW. r: a number, or a share of the cut dimension. side "reverse" cuts the larger one, "both" cuts both
    (C = Pᵀ G Q; the authors' "full"); inner: what stands for Adam. Source: Zhao et al. 2024; Adam with epsilon before
    the bias correction and weight decay after the step, as in their code; `svd="exact"` is theirs too, the default is
    subspace iteration. Trap: a learning rate for AdamW is too small by 1 / scale and more.
    """

    r: int | float = 128
    every: int = 200
    scale: float = 0.25
    side: Literal["auto", "left", "right", "reverse", "both"] = "auto"
    svd: Literal["randomized", "exact"] = "randomized"
    inner: Word = "adam"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        basis = Rsvd() if self.svd == "randomized" else Svd()
        frame = TwoSided(self.r, basis) if self.side == "both" else Side(self.r, basis, self.side)
        adam = Adam(eps=1e-6, convention="hf")
        return Sub(frame, inner(self.inner, adam), every=self.every, scale=self.scale, decay="after")

    def floats(self, m: int, n: int) -> int:
        """Numbers of floating-point state for an m x n matrix: frame and two moments."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return matrices(self.rule(), named, lr, about, **{"weight_decay": self.weight_decay, **kw})
