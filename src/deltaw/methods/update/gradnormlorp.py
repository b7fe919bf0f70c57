"""GradNormLoRP: weight normalisation by rows; the direction's gradient is projected, the sizes move freely."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import HF_ADAM, MatrixUpdate, Side, Solver, Sub, TwoSided, WeightNorm, solver


@update(paper="arXiv:2412.19616")
class GradNormLoRP(MatrixUpdate):
    """W = g V / |V| by output rows; V <- V - lr scale up(Adam(down dV)), g <- g - lr Adam(dg), W from both.

    dg_i = <G_i, v_i>, dV_i = (g_i / |V_i|)(G_i - dg_i v_i). side "both": C = Pᵀ dV Q (r x r), the paper's; "auto": one side, the code's.
    State of an m x n matrix, both: (m + n) r + 2 r² + 4 m numbers; auto, m <= n: m r + 2 n r + 4 m (V is read from W). Source: Huang et al.
    2024 (AAAI 2025), seen in summary, and their code, which contradicts itself: it leaves out the tangential part of dV, overwrites g by
    |V| at each step and decays both. Our reading: weight normalisation as it is defined, Adam as in GaLore, decay on g. Trap: a
    row that starts at zero has no direction and stays there.
    """

    r: int | float = 128
    every: int = 250
    scale: float = 0.25
    side: Literal["auto", "both"] = "both"
    svd: Solver = "randomized"
    weight_decay: float = 0.0

    def rule(self) -> WeightNorm:
        basis = solver(self.svd)
        frame = TwoSided(self.r, basis) if self.side == "both" else Side(self.r, basis)
        return WeightNorm(Sub(frame, HF_ADAM, every=self.every, scale=self.scale), HF_ADAM)
