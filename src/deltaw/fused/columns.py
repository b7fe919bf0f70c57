"""W x + D x_i, trained columns i of a plain base: one product with the changed weight, as without an adapter.

W with D added to its columns is written anew for each product, m n numbers moved, and dropped: cheaper than three thin
products over the tokens. Kept for the gradient of D are the entries i of x, never x.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .leaves import outer
from .thin import kept_too_little

MOVE = 6  # multiply-adds in the time of copying one entry of W, in cache
JUMP = 120  # and of changing one entry in a column, which lies in a cache line of its own


def pays(m: int, n: int, k: int, T: int) -> bool:
    """Is copying W twice cheaper than what it saves, D x_i added to y and Dᵀ g to the gradient of x_i?"""
    return 2 * m * (MOVE * n + JUMP * k) < 2 * T * k * m


def columns(x: Tensor, W: Tensor, bias: Tensor | None, D: Tensor, i: Tensor) -> Tensor:
    """y (..., m) of x (..., n), W (m, n) frozen, D (m, k), i (k,) different column numbers."""
    if torch.is_grad_enabled():
        return Columns.apply(x, W, bias, D, i)  # type: ignore[no-any-return]
    return F.linear(x, changed(W, D, i), bias if bias is None else bias.to(x.dtype))


def changed(W: Tensor, D: Tensor, i: Tensor) -> Tensor:
    """W with D added to its columns i; the sum is formed in the wider dtype of the two and rounded once."""
    return W.index_copy(1, i, (W.index_select(1, i) + D).to(W.dtype))


class Columns(torch.autograd.Function):
    """apply(x, W, bias, D, i)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, D: Tensor, i: Tensor) -> Tensor:  # type: ignore[override]
        wants = ctx.needs_input_grad[3]
        ctx.save_for_backward(x.reshape(-1, x.shape[-1]).index_select(1, i) if wants else None, W, D, i)
        return F.linear(x, changed(W, D, i), bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        picked, W, D, i = ctx.saved_tensors
        if torch.is_grad_enabled() and picked is not None:
            raise kept_too_little()
        gx = g @ changed(W, D, i) if ctx.needs_input_grad[0] else None
        gD = None if picked is None else outer(g.reshape(-1, g.shape[-1]), picked).to(D.dtype)
        return gx, None, None, gD, None
