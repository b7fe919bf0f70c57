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
from .dropout import STEPS, keeps, mask, masked, noise
from .leaves import back, grad, into

FIXED = 6  # arguments of `apply` before the tensors


@dataclass
class Shape:
    """The parts, leftmost first: an operator without trained tensors, or the type of a leaf whose tensor is passed on;
    the slot of its tensor, or None. c: the product of the leaves' factors. p and seed of a dropout on the input."""

    parts: list[Op | type]
    slots: list[int | None]
    c: float = 1.0
    p: float = 0.0
    seed: int = 0

    def ops(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Op]:
        return [
            part if slot is None else part(tensors[slot].to(dtype))  # type: ignore[operator, misc]
            for part, slot in zip(self.parts, self.slots)
        ]

    @property
    def factor(self) -> float:
        """What P_k x and its gradient are multiplied with: numbers go where the tensors are thin."""
        return self.c * STEPS / keeps(self.p) if self.p else self.c

    def plain(
        self, x: Tensor, W: Tensor | None, y0: Tensor | None, bias: Tensor | None, d: Tensor | None, tensors: list[Tensor]
    ) -> Tensor:
        """The same in differentiable pieces."""
        z = x * noise(x, self.p, self.seed) if self.p else x
        for part in reversed(self.ops(tensors, x.dtype)):
            z = part(z)
        y = self.c * z + (F.linear(x, W) if W is not None else x if y0 is None else y0)
        y = y if d is None else y * d.to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)


def revertible(y: Tensor, bias: Tensor | None) -> bool:
    """Can diag(d) y0 stand for y0 until backward? Whoever reads y next often keeps it anyway, so y0 would be a second
    copy. Not over a bias, which would cost digits, and not in float16, whose range is too small for tiny d."""
    return bias is None and y.dtype != torch.float16


def nonzero(d: Tensor) -> Tensor:
    """d, but for entries so small that what they multiply could not be recovered."""
    tiny = 1e-20
    return torch.where(d.abs() < tiny, tiny, d)


def saved(ctx: Any) -> Any:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise SpecError(
            "the output of an adapted layer was modified in place before backward, which needs it to find the gradient of "
            "a scale on that output (diag(d) in front of the weight). Write the operation out of place, or run the "
            "forward within `with deltaw.fused.walking():`"
        ) from error


def kept_too_little() -> SpecError:
    return SpecError(
        "a second derivative was asked for, of a fused path that kept too little for it: run the forward within "
        "`with deltaw.fused.walking():`"
    )


def compute(
    shape: Shape, x: Tensor, W: Tensor | None, y0: Tensor | None, bias: Tensor | None, d: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, P_k x, what the gradient of d needs): for arguments as in `Thin`, without recording anything."""
    flat = x.reshape(-1, x.shape[-1])
    parts = shape.ops(tensors, x.dtype)
    z = parts[-1](masked(flat, mask(flat, shape.p, shape.seed)) if shape.p else flat)
    if shape.factor != 1.0:
        z = z * shape.factor
    first = z
    for part in reversed(parts[1:-1]):
        z = part(z)
    if W is not None:
        y = F.linear(x, W, None if d is not None or bias is None else bias.to(x.dtype)).contiguous()
    else:
        y = (x if y0 is None else y0).clone(memory_format=torch.contiguous_format)
    into(parts[0], y.view(len(flat), -1), z)  # y itself is returned: a view could not be written to afterwards
    whole = y
    if d is not None and revertible(y, bias):
        y *= nonzero(d.to(y.dtype))
        whole = y
    elif d is not None:
        scale = d.to(y.dtype)
        y = whole * scale if bias is None else torch.addcmul(bias.to(y.dtype), whole, scale)
    elif W is None and bias is not None:
        y += bias.to(y.dtype)
    return y, first, whole


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
        y, first, whole = compute(shape, x, W, y0, bias, d, tensors)
        wanted = ctx.needs_input_grad
        inner = any(wanted[FIXED:])
        keep_x = shape.slots[-1] is not None and wanted[-1]  # the last tensor is the last part's
        ctx.shape, ctx.lead, ctx.added = shape, x.shape[:-1], y0 is not None
        ctx.save_for_backward(
            x if keep_x else None, first if inner else None, whole if wanted[5] else None, W, bias, d, *tensors
        )
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            return _again(ctx, g)
        x, first, whole, W, bias, d, *tensors = saved(ctx)
        shape, wanted = ctx.shape, ctx.needs_input_grad
        g = g.reshape(-1, g.shape[-1])
        gd = None
        if d is not None:
            scale = nonzero(d.to(g.dtype)) if revertible(g, bias) else d.to(g.dtype)
            if wanted[5]:
                gd = (g * whole.view(g.shape)).sum(0, dtype=d.dtype)
                gd = gd / scale if revertible(g, bias) else gd
            g = g * scale
        parts = shape.ops(tensors, g.dtype)
        slots = shape.slots
        leaves: list[Tensor | None] = [None] * len(tensors)

        def learn(k: int, z: Tensor, gz: Tensor) -> None:
            slot = slots[k]
            if slot is not None and wanted[FIXED + slot]:
                leaves[slot] = grad(parts[k], z, gz).to(tensors[slot].dtype)

        inputs = [first]  # of parts[-2], parts[-3], …, parts[0]
        for part in reversed(parts[1:-1]):
            inputs.append(None if first is None else part(inputs[-1]))
        gz = g
        for k, z in enumerate(reversed(inputs)):
            learn(k, z, gz)
            gz = parts[k].rmv(gz)
        kept = None
        if shape.factor != 1.0:
            gz = gz * shape.factor
        if shape.p and (x is not None or wanted[1]):
            kept = mask(gz.new_empty(len(gz), parts[-1].shape[1]), shape.p, shape.seed)
        if x is not None:
            flat = x.reshape(-1, x.shape[-1])
            learn(len(parts) - 1, flat if kept is None else masked(flat, kept), gz)
        gx = None
        if wanted[1] and ctx.added:
            gx = parts[-1].rmv(gz)
            gx = gx if kept is None else masked(gx, kept)
        elif wanted[1]:
            gx = g.clone() if W is None else g @ W
            if kept is None:
                back(parts[-1], gx, gz)
            else:
                gx += masked(parts[-1].rmv(gz), kept)
        gx = None if gx is None else gx.view(*ctx.lead, gx.shape[-1])
        gy0 = g.view(*ctx.lead, g.shape[-1]) if wanted[3] else None
        return None, gx, None, gy0, None, gd, *leaves


def _again(ctx: Any, g: Tensor) -> Any:
    """Somebody differentiates the gradient: the plain formula, recorded."""
    x, _, _, W, bias, d, *tensors = saved(ctx)
    if x is None or (ctx.added and d is not None):
        raise kept_too_little()
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
