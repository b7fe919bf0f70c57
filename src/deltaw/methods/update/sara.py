"""SARA: GaLore or Fira on singular vectors drawn by their singular values."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import HF_ADAM, Drop, MatrixUpdate, Phi, Side, Sub, SvdSample


@update(paper="arXiv:2502.05790")
class SARA(MatrixUpdate):
    """At a refresh r singular vectors of G are drawn without replacement with weights sigma_i / sum sigma; otherwise GaLore's step, or Fira's.

    State of an m x n matrix, m <= n: m r + 2 n r numbers. Source: Zhang et al. 2025 (first called I3S); no code is
    public: the draw is torch.multinomial's (one after the other), the vectors in order of sigma, so that moments that are kept meet similar
    directions. Trap: it needs the whole SVD, a sketch has only the leading vectors.
    """

    r: int | float = 128
    every: int = 200
    scale: float = 0.25
    host: Literal["galore", "fira"] = "galore"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        rest = Phi() if self.host == "fira" else Drop()
        frame = Side(self.r, SvdSample())
        return Sub(frame, HF_ADAM, rest, every=self.every, scale=self.scale, decay="after")
