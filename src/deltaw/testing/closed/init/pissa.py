"""PiSSA by hand: the eigenvectors of W Wᵀ and what they project out of W."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.pissa import PiSSA

INITS = [PiSSA(), PiSSA(niter=8)]
PEFT = "pissa against PEFT's, bit for bit up to signs and rounding"


def closed(init: PiSSA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, Tensor]:
    square, U = torch.linalg.eigh(W @ W.T)
    U, sigma = U[:, -r:].flip(1), square[-r:].flip(0).sqrt()
    B = U * (sigma / s).sqrt()
    A = (U.T @ W) / sigma[:, None] * (sigma / s).sqrt()[:, None]
    return B, A, -U @ U.T @ W
