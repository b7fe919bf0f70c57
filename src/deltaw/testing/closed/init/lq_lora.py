"""The weighted SVD of what the quantised base has lost, through the eigenvectors of its Gram matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....methods.init.lq_lora import LQLoRA

INITS = [LQLoRA()]


def closed(init: Any, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    F, E = stats["fisher"].double(), stats["original"].double() - W.double()
    row, col = (F.mean(1) + 1e-12 * F.mean()).sqrt(), (F.mean(0) + 1e-12 * F.mean()).sqrt()
    M = row[:, None] * E * col
    V = torch.linalg.eigh(M.mT @ M)[1].flip(1)[:, :r]
    size = (M @ V).norm(dim=0)
    B, A = (M @ V) / size.sqrt() / row[:, None], size.sqrt()[:, None] * V.mT / col
    return B / s**0.5, A / s**0.5, None
