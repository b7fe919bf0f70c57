"""W + D, where D would be built as a matrix anyway: one product with the sum instead of two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Op


def joined(W: Tensor, delta: list[Op], d: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """diag(d) (W + D) x + bias; gradients reach D through the full m x n gradient of the sum."""
    b = None if bias is None or d is not None else bias.to(x.dtype)
    if all(hasattr(term, "entries") for term in delta):
        y = Entries.apply(x, W, b, *(t for term in delta for t in term.entries))  # type: ignore[attr-defined]
    else:
        for term in delta:
            W = W + term.dense().to(W.dtype)
        y = F.linear(x, W, b)
    if d is None:
        return y  # type: ignore[no-any-return]
    y = y * d.to(x.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def entered(W: Tensor, pairs: tuple[Tensor, ...]) -> Tensor:
    """W with the values of (positions, values, positions, values, …) added."""
    flat = W.flatten().clone()
    for i, v in zip(pairs[::2], pairs[1::2]):
        flat = flat.index_add(0, i, v.to(W.dtype))
    return flat.view(W.shape)


class Entries(torch.autograd.Function):
    """apply(x, W, b, i, v, …) -> (W + entries) x + b. The sum is m x n: it is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, *pairs: Tensor) -> Tensor:  # type: ignore[override]
        learns = any(ctx.needs_input_grad[4::2])
        ctx.save_for_backward(x if learns else None, W, *pairs)
        return F.linear(x, entered(W, pairs), b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, W, *pairs = ctx.saved_tensors
        gx = g @ entered(W, tuple(pairs)) if ctx.needs_input_grad[0] else None
        out: list[Tensor | None] = [None] * len(pairs)
        if x is not None:
            full = (g.flatten(0, -2).mT @ x.flatten(0, -2)).flatten()
            for k in range(1, len(pairs), 2):
                out[k] = full[pairs[k - 1]].to(pairs[k].dtype) if ctx.needs_input_grad[3 + k] else None
        return gx, None, None, *out
