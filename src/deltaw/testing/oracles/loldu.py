"""LoLDU: the paper's form, P L_r diag(z) U_r beside a residual (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.loldu import LoLDU

METHODS = (LoLDU(r=4, alpha=6.0), LoLDU(r=16, alpha=16.0))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The factors by elimination, row by row; the trained diagonal starts at D."""
    m, n = W.shape
    left, order = W.detach().clone(), list(range(m))
    L, D, U = W.new_zeros(m, n), W.new_zeros(n), W.new_zeros(n, n)
    for k in range(n):
        row = max(order[k:], key=lambda i: float(left[i, k].abs()))
        order.remove(row)
        order.insert(k, row)
        D[k], U[k] = left[row, k], left[row] / left[row, k]
        for i in order[k:]:
            L[i, k] = left[i, k] / D[k]
        left = left - D[k] * torch.outer(L[:, k], U[k])
    r, s = method.r, method.alpha / method.r
    residual = W - s * L[:, :r] @ torch.diag(D[:r]) @ U[:r]
    y = x @ (residual + s * L[:, :r] @ torch.diag(D[:r] + p["z"]) @ U[:r]).mT
    return y if b is None else y + b
