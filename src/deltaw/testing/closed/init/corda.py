"""CorDA by hand: eigenvectors of W C² Wᵀ; what they project out of W is U S V̂ᵀ, whatever C is."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.corda import CorDA

INITS = [CorDA(), CorDA(mode="kpm")]
PEFT = "both modes against preprocess_corda"


def closed(init: CorDA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, Tensor]:
    X = stats["rows"] / stats["rows"].max()
    C = X.T @ X
    C = C + 0.01 * C.trace() / len(C) * torch.eye(len(C), dtype=C.dtype)  # inverts well: one round
    square, U = torch.linalg.eigh(W @ C @ C @ W.T)
    order = square.argsort(descending=True)[: min(W.shape)]
    order = order[:r] if init.mode == "ipm" else order[-r:]
    U, sigma = U[:, order], square[order].sqrt()
    B = U * (sigma / s).sqrt()
    A = (U.T @ W) / sigma[:, None] * (sigma / s).sqrt()[:, None]
    return B, A, -U @ U.T @ W
