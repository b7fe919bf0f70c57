"""diag(d) (W x + P_0 P_1 … P_k x) + b in one autograd function.

Forward: z = P_1 … P_k x is thin, and P_0 z is added into the base's output. Backward: gz = P_0ᵀ g, the same in place
into Wᵀ g. Kept between them: x if P_k is trained, the thin P_k x, and, with a trained d, the output before it. Masters
are cast inside, activations never; a dropout mask is drawn again from its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SpecError
from ..ops import Op
from .dropout import mask
from .leaves import back, grad, into

FIXED = 6  # arguments of `apply` before the tensors


@dataclass
class Shape:
    """The parts, leftmost first: an operator without trained tensors, or the type of a leaf whose tensor is passed on."""

    parts: list[Op | type]
    p: float = 0.0
    seed: int = 0

    def ops(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Op]:
        rest = iter(tensors)
        return [part if isinstance(part, Op) else part(next(rest).to(dtype)) for part in self.parts]

    def noise(self, x: Tensor) -> Tensor:
        return mask(x, self.p, self.seed).mul_(1.0 / (1.0 - self.p))

    def plain(
        self, x: Tensor, W: Tensor | None, y0: Tensor | None, bias: Tensor | None, d: Tensor | None, tensors: list[Tensor]
    ) -> Tensor:
        """The same in differentiable pieces."""
        z = x * self.noise(x) if self.p else x
        for part in reversed(self.ops(tensors, x.dtype)):
            z = part(z)
        y = z + (F.linear(x, W) if W is not None else x if y0 is None else y0)
        y = y if d is None else y * d.to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)


class Thin(torch.autograd.Function):
    """apply(shape, x, W, y0, bias, d, *tensors) -> y (..., m), x (..., n).

    W (m, n): the base, frozen; without it y0 (..., m): the base's output; without both the base is the identity.
    bias (m,), frozen, and d (m,) may be None.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, shape: Shape, x: Tensor, W: Tensor | None, y0: Tensor | None, bias: Tensor | None, d: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1])
        parts = shape.ops(tensors, x.dtype)
        z = first = parts[-1](flat * shape.noise(flat) if shape.p else flat)
        for part in reversed(parts[1:-1]):
            z = part(z)
        if W is not None:
            y = F.linear(flat, W, None if d is not None or bias is None else bias.to(x.dtype))
        else:
            y = (x if y0 is None else y0).reshape(len(flat), -1).clone()
        into(parts[0], y, z)
        whole = None
        if d is not None:
            whole, scale = y, d.to(y.dtype)
            y = whole * scale if bias is None else torch.addcmul(bias.to(y.dtype), whole, scale)
        elif W is None and bias is not None:
            y += bias.to(y.dtype)
        wanted = ctx.needs_input_grad
        inner = any(wanted[FIXED:])
        keep_x = inner and not isinstance(shape.parts[-1], Op) and wanted[-1]  # the last tensor is the last part's
        ctx.shape, ctx.lead, ctx.added = shape, x.shape[:-1], y0 is not None
        ctx.save_for_backward(
            x if keep_x else None, first if inner else None, whole if wanted[5] else None, W, bias, d, *tensors
        )
        return y.view(*ctx.lead, y.shape[-1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            return _again(ctx, g)
        x, first, whole, W, _, d, *tensors = ctx.saved_tensors
        shape, wanted = ctx.shape, ctx.needs_input_grad
        g = g.reshape(-1, g.shape[-1])
        gd = (g * whole).sum(0, dtype=d.dtype) if wanted[5] else None
        if d is not None:
            g = g * d.to(g.dtype)
        parts = shape.ops(tensors, g.dtype)
        slots = [None if isinstance(part, Op) else k for part, k in zip(shape.parts, _count(shape.parts))]
        leaves: list[Tensor | None] = [None] * len(tensors)

        def learn(part: Op, slot: int | None, z: Tensor, gz: Tensor) -> None:
            if slot is not None and wanted[FIXED + slot]:
                leaves[slot] = grad(part, z, gz).to(tensors[slot].dtype)

        inputs = [first]  # of parts[-2], parts[-3], …, parts[0]
        for part in reversed(parts[1:-1]):
            inputs.append(None if first is None else part(inputs[-1]))
        gz = g
        for part, slot, z in zip(parts[:-1], slots[:-1], reversed(inputs)):
            learn(part, slot, z, gz)
            gz = part.rmv(gz)
        noise = None
        if shape.p and (x is not None or wanted[1]):
            noise = shape.noise(x.reshape(-1, x.shape[-1]) if x is not None else gz.new_empty(len(gz), parts[-1].shape[1]))
        if x is not None:
            flat = x.reshape(-1, x.shape[-1])
            learn(parts[-1], slots[-1], flat if noise is None else flat * noise, gz)
        gx = None
        if wanted[1] and ctx.added:
            gx = parts[-1].rmv(gz)
            gx = gx if noise is None else gx.mul_(noise)
        elif wanted[1]:
            gx = g.clone() if W is None else g @ W
            if noise is None:
                back(parts[-1], gx, gz)
            else:
                gx.addcmul_(parts[-1].rmv(gz), noise)
        gx = None if gx is None else gx.view(*ctx.lead, gx.shape[-1])
        gy0 = g.view(*ctx.lead, g.shape[-1]) if wanted[3] else None
        return None, gx, None, gy0, None, gd, *leaves


def _count(parts: list[Op | type]) -> list[int]:
    """The number of the tensor of each part (of operators: of the next)."""
    out, k = [], 0
    for part in parts:
        out.append(k)
        k += not isinstance(part, Op)
    return out


def _again(ctx: Any, g: Tensor) -> Any:
    """Somebody differentiates the gradient: the plain formula, recorded."""
    x, _, _, W, bias, d, *tensors = ctx.saved_tensors
    if x is None or (ctx.added and d is not None):
        raise SpecError(
            "a second derivative was asked for, of a fused path that kept too little for it: run the forward within "
            "`with deltaw.fused.walking():`"
        )
    wanted = ctx.needs_input_grad
    y0 = None
    with torch.enable_grad():
        if ctx.added:  # enters as it is, so any value gives its gradient
            y0 = g.new_zeros(*ctx.lead, g.shape[-1]).requires_grad_(wanted[3])
        y = ctx.shape.plain(x, W, y0, bias, d, tensors)
        inputs = [None, x, None, y0, None, d, *tensors]
        asked = [t for t, want in zip(inputs, wanted) if want]
        found = iter(torch.autograd.grad(y, asked, g, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(found) if want else None for want in wanted)
