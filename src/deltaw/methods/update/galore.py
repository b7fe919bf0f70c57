"""GaLore: Adam on the gradient's projection onto a subspace that is chosen again every T steps."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import HF_ADAM, MatrixUpdate, Side, Solver, Sub, TwoSided, Word, inner, solver


@update(paper="arXiv:2403.03507")
class GaLore(MatrixUpdate):
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
    svd: Solver = "randomized"
    inner: Word = "adam"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        basis = solver(self.svd)
        frame = TwoSided(self.r, basis) if self.side == "both" else Side(self.r, basis, self.side)
        return Sub(frame, inner(self.inner, HF_ADAM), every=self.every, scale=self.scale, decay="after")
