"""Weights that are made anew whenever they are needed, and kept by nobody: what a structure that replaces W trains with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Op


class Product(torch.autograd.Function):
    """y = x Wᵀ that saves x, but not W: the backward pass asks for W again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, again: Callable[[], Tensor]) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(x)
        return F.linear(x, W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        dx = (g @ ctx.again().to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, g.flatten(0, -2).mT @ x.flatten(0, -2).to(g.dtype), None


class Remade(Op):
    """The same operator: for few tokens as it is, for many as its dense matrix, formed in the forward and once more in the
    backward pass. Between the two only the tensors it is made of and x exist."""

    like = property(lambda self: self.op.like)

    def __init__(self, op: Op):
        self.op, self.shape = op, op.shape

    def __call__(self, x: Tensor) -> Tensor:
        m, n = self.shape
        if x.dim() < 2 or (x.numel() // n) * (m + n) < m * n:
            return self.op(x)
        W = self.op.dense().to(x.dtype)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler decides by itself what it keeps
            return F.linear(x, W)
        y: Tensor = Product.apply(x, W, self.again)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def again(self) -> Tensor:
        return self.op.dense()

    def rmv(self, y: Tensor) -> Tensor:
        return self.op.rmv(y)

    def dense(self) -> Tensor:
        return self.op.dense()


class Scattered(Op):
    """B A + the values v (k,) at the flat positions I (k,) of the matrix."""

    like = property(lambda self: self.v)

    def __init__(self, BA: Op, I: Tensor, v: Tensor):  # noqa: E741
        self.BA, self.I, self.v, self.shape = BA, I, v, BA.shape

    def __call__(self, x: Tensor) -> Tensor:
        y, n = self.BA(x), self.shape[1]
        return y.index_add(-1, self.I // n, (x[..., self.I % n] * self.v.to(x.dtype)).to(y.dtype))

    def dense(self) -> Tensor:
        flat = self.BA.dense().flatten()  # in half precision under autocast
        return flat.index_add(0, self.I, self.v.to(flat.dtype)).view(self.shape)
