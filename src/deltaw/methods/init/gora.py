"""GoRA: ranks by the importance of the weights for the gradient, and a start that is one compressed step of descent."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...spec import Start, Tensors
from . import init, innermost, two_factors


@init(
    paper="arXiv:2502.12171",
    needs=("weight", "gradient"),
    start="none: one step of descent has been made, seen through A",
)
class GoRA:
    """B = -gamma sqrt(n / r) / s G Aᵀ (A Aᵀ + 1e-8 I)⁻¹, A as the method draws it: s B A = -gamma sqrt(n / r) G P_A. W stays.
    At an embedding, where the method draws B: A likewise, s B A = -gamma sqrt(m / r) P_B G.

    Ranks: importance I = mean |W * G| ("frobenius": its norm), p = I / sum I; budget T = sum f(m + n) r over the sites, f =
    "identity", "sqrt" or "log1p"; r_l = round(T p_l) // f(m + n), within [r_min, r_max]. They become overrides of the plan;
    s_l follows the method at its own rank: alpha / sqrt(r_l) with RsLoRA, as the authors' scripts have it, alpha / r_l with LoRA.
    Source: He et al. 2025 and its code (union_mean, scaling by lr, r_min 4, r_max 32).
    Trap: the code leaves the minus sign out while its own error is measured against -lr G; with it step 0 descends.
    """

    gamma: float = 5e-2
    r_min: int = 4
    r_max: int = 32
    importance: Literal["mean", "frobenius"] = "mean"
    features: Literal["identity", "sqrt", "log1p"] = "identity"

    keeps_scale = False

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Tensor]]) -> dict[str, int]:
        f = {"identity": float, "sqrt": math.sqrt, "log1p": math.log1p}[self.features]
        size = {s.name: f(sum(s.W.shape)) for s in starts}
        seen = {s.name: self.of(s.dense(), stats[s.name]["gradient"]) for s in starts}
        budget = sum(size[s.name] * innermost(s.method).r for s in starts)  # type: ignore[attr-defined]
        total = max(sum(seen.values()), 1e-30)
        return {k: min(max(int(round(budget * seen[k] / total) // size[k]), self.r_min), self.r_max) for k in size}

    def of(self, W: Tensor, G: Tensor) -> float:
        both = W * G.to(W)
        return float(both.abs().mean() if self.importance == "mean" else both.norm())

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, s = two_factors(start, p)
        G = stats["gradient"].to(A)
        free, step = (B, self.step(A, G)) if A.any() else (A, self.step(B.mT, G.mT).mT)
        free.copy_(step / s)

    def step(self, A: Tensor, G: Tensor) -> Tensor:
        """(m, r): the coefficients of the descent in the rows of A (r, n)."""
        (r, n), gram = A.shape, A @ A.mT
        return -self.gamma * math.sqrt(n / r) * torch.linalg.solve(gram + 1e-8 * torch.eye(r).to(A), A @ G.mT).mT
