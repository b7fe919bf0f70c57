"""W x + c B A x + b, two matrices on a plain base: what `thin` does, with as little Python as there can be around the six
products, for which small layers and accelerators wait.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .leaves import outer
from .thin import kept_too_little


def pair(x: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, A: Tensor, c: float) -> Tensor:
    """y (..., m) of x (..., n), W (m, n), B (m, r), A (r, n), all but B and A frozen; see `Pair`."""
    if torch.is_grad_enabled():
        return Pair.apply(x, W, bias, B, A, c)  # type: ignore[no-any-return]
    return compute(x, W, bias, B, A, c)[0]


def compute(x: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, A: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """(y, z = A x with the tokens in one axis)."""
    A, B = A.to(x.dtype), B.to(x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    z = flat @ A.mT
    y = F.linear(x, W, None if bias is None else bias.to(x.dtype)).contiguous()
    y.view(-1, y.shape[-1]).addmm_(z, B.mT, alpha=c)
    return y, z


class Pair(torch.autograd.Function):
    """apply(x, W, bias, B, A, c). Kept: x where A is trained, A x where B is; nothing that was cast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, A: Tensor, c: float) -> Tensor:  # type: ignore[override]
        y, z = compute(x, W, bias, B, A, c)
        _, _, _, learns_B, learns_A, _ = ctx.needs_input_grad
        ctx.c, ctx.lead = c, x.shape[:-1]
        ctx.save_for_backward(x if learns_A else None, z if learns_B else None, W, B, A)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, z, W, B, A = ctx.saved_tensors
        c, (wants_x, _, _, learns_B, learns_A, _) = ctx.c, ctx.needs_input_grad
        flat = None if x is None else x.reshape(-1, x.shape[-1])
        again = torch.is_grad_enabled()  # somebody differentiates the gradient: what follows is recorded
        b, a = B.to(g.dtype), A.to(g.dtype)
        if again:
            if flat is None:
                raise kept_too_little()
            z = flat @ a.mT
        g = g.reshape(-1, g.shape[-1])
        gz, gx, gB, gA = g @ b, None, None, None
        if learns_B:
            gB = outer(g, z).mul_(c).to(B.dtype)
        if learns_A:
            gA = (gz.mT @ flat).mul_(c).to(A.dtype)
        if wants_x:
            gx = (g @ W).addmm_(gz, a, alpha=c).view(*ctx.lead, W.shape[1])
        return gx, None, None, gB, gA, None
