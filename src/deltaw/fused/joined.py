"""W + D, where D would be built as a matrix anyway: one product with the sum instead of two."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..ops import Op


def joined(W: Tensor, delta: list[Op], d: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """diag(d) (W + D) x + bias; gradients reach D through the full m x n gradient of the sum."""
    for term in delta:
        W = W + term.dense().to(W.dtype)
    if d is None:
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))
    y = F.linear(x, W) * d.to(x.dtype)
    return y if bias is None else y + bias.to(y.dtype)
