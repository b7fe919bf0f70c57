"""SNELL: distances in a slow loop, survivors by sorting (PEFT 0.21 does not have it)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.snell import SNELL

METHODS = (SNELL(q=4, sparsity=0.3), SNELL(q=8, sparsity=0.0))


def closed(method: SNELL, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    rows = []
    for i in range(m):
        for j in range(n):
            d = [(p["Q"][h, i] - p["P"][h, j]).pow(2).sum().sqrt() for h in (0, 1)]
            rows.append(0.1 * d[0] - 0.1 * d[1])
    K = torch.stack(rows)
    order = K.detach().abs().argsort()
    gate = K.detach().abs().clone()
    gate[order[: math.floor(method.sparsity * m * n)]] = 0.0
    return F.linear(x, W + (K * gate).view(m, n), b)
