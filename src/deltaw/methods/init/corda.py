"""CorDA: start from the part of W that matters most (or least) for the inputs it meets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Start, Tensors
from . import init, two_factors


@init(paper="arXiv:2406.05223", shifts=True, needs=("weight", "inputs_by_max"))
class CorDA:
    """W C = U S Vᵀ, V̂ᵀ = Vᵀ C⁻¹, so that W = U S V̂ᵀ; B = U_k sqrt(S_k / s), A = sqrt(S_k / s) V̂_kᵀ; the base gives up s B A.

    k: "ipm" the r largest triplets (adapt to the task that was probed), "kpm" the r smallest (keep what was probed intact).
    C = mean over batches of XᵀX, X divided by its largest entry; damped by d mean(diag C) I, d = .01 and doubled until
    |C C⁻¹ - I|_F < .05. Step 0 is W; export is a LoRA of rank 2 r. Source: Yang et al. 2024; as in HF PEFT.
    Trap: the division by max(X) is by the largest entry, not by the largest size; it only weighs batches against one another
    and B against A: any multiple of C gives the same B A.
    """

    mode: Literal["ipm", "kpm"] = "ipm"

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op:
        B, A, s = two_factors(start, p)
        r, W = A.shape[0], start.dense()
        start.room(r)
        C, inverse = damped(stats["inputs_by_max"].to(W))
        U, S, V = torch.linalg.svd(W @ C, full_matrices=False)
        k = slice(r) if self.mode == "ipm" else slice(len(S) - r, None)
        root = (S[k] / s).sqrt()
        B.copy_(U[:, k] * root)
        A.copy_(root[:, None] * (V[k] @ inverse))
        return chain(-s * B, A.clone())


def damped(C: Tensor) -> tuple[Tensor, Tensor]:
    """(C, its inverse) with as much on the diagonal as an accurate inverse needs."""
    eye, d = torch.eye(len(C)).to(C), 0.01
    while True:
        full = C + d * C.diagonal().mean() * eye
        inverse = torch.linalg.inv(full)
        if torch.dist(full @ inverse, eye) < 0.05 or d > 1e6:
            return full, inverse
        d *= 2
