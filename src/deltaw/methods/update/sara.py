"""SARA: GaLore or Fira on singular vectors drawn by their singular values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Drop, Phi, Side, Sub, SvdSample, matrices


@update(paper="arXiv:2502.05790")
class SARA:
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
        return Sub(
            Side(self.r, SvdSample()),
            Adam(eps=1e-6, convention="hf"),
            rest,
            every=self.every,
            scale=self.scale,
            decay="after",
        )

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix: frame and two moments."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return matrices(self.rule(), named, lr, about, **{"weight_decay": self.weight_decay, **kw})
