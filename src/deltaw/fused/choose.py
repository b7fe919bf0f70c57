"""Which path evaluates an expression: the cheapest one by estimated multiply-adds, forward and backward together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Affine, Base, Chain, Dense, Diag, Eye, Hadamard, Op, Sum, add, chain, cost, factors
from ..ops.core import FAST
from .dropout import Dropped, draw
from .joined import joined
from .leaves import grad
from .thin import Shape, Thin

PASS = 8  # multiply-adds in the time of moving one entry of a matrix once
_walking = 0


class walking:
    """`with walking():` evaluate node by node: the reference, and what can be differentiated any number of times."""

    def __enter__(self) -> None:
        global _walking
        _walking += 1

    def __exit__(self, *_: object) -> None:
        global _walking
        _walking -= 1


def usable(x: Tensor) -> bool:
    """Plain tensors, eager, one backward: transforms, tracing, subclasses and autocast get the plain walk."""
    return (
        not _walking
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type != "meta"
        and x.is_floating_point()
        and x.numel() > 0
        and not torch.is_autocast_enabled(x.device.type)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and not torch.jit.is_tracing()
    )


def fast(L: Affine, x: Tensor) -> Tensor | None:
    """L(x) by a fused path, or None where the plain walk is as good."""
    op = L.op
    if isinstance(op, Base) or not usable(x) or (L.bias is not None and L.bias.requires_grad):
        return None
    d = None
    if isinstance(op, Chain):
        if isinstance(op.parts[0], Base):  # W (I + P): the delta moves the input
            moved = _on_identity(op.parts[1:], x)
            return None if moved is None else op.parts[0].affine(moved, L.bias)
        if isinstance(op.parts[0], Diag) and len(op.parts) == 2:
            d, op = op.parts[0].v, op.parts[1]
    if not isinstance(op, Sum) or not isinstance(op.terms[0], Base):
        return None
    return _on_base(op.terms[0], op.terms[1:], d, L.bias, x)


FAST.append(fast)


def _on_base(base: Base, terms: list[Op], d: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor | None:
    p, delta = 0.0, terms
    if len(terms) == 1 and isinstance(terms[0], Dropped):
        p, delta = terms[0].p, [terms[0].op]
    T = x.numel() // x.shape[-1]
    m, n = base.shape
    parts = _parts(delta, T)
    direct = base.direct(x)
    if parts is None:
        if direct is None or p or any(isinstance(t, Dropped) for t in delta) or not _dense_pays(delta, T):
            return None
        return joined(direct, delta, d, bias, x)
    if direct is not None and not p:
        thin = 3 * sum(cost(part, T) for part in parts)
        if thin > T * m * n + 4 * PASS * m * n:
            return joined(direct, delta, d, bias, x)
    shape = Shape([part if part.constant else type(part) for part in parts], p, draw() if p else 0)
    tensors = [part.like for part in parts if not part.constant]
    if direct is not None:
        return Thin.apply(shape, x, direct, None, bias, d, *tensors)  # type: ignore[no-any-return]
    if d is None:
        return Thin.apply(shape, x, None, base.affine(x, bias), None, None, *tensors)  # type: ignore[no-any-return]
    return Thin.apply(shape, x, None, base(x), bias, d, *tensors)  # type: ignore[no-any-return]


def _on_identity(parts: list[Op], x: Tensor) -> Tensor | None:
    if len(parts) != 1 or not isinstance(parts[0], Sum):
        return None
    eye, *rest = parts[0].terms
    if not (isinstance(eye, Eye) and eye.plain):
        return None
    thin = _parts(rest, x.numel() // x.shape[-1])
    if thin is None:
        return None
    shape = Shape([part if part.constant else type(part) for part in thin])
    tensors = [part.like for part in thin if not part.constant]
    return Thin.apply(shape, x, None, None, None, None, *tensors)  # type: ignore[no-any-return]


def _parts(delta: list[Op], T: int) -> list[Op] | None:
    """The factors of a delta as leaves and constant operators, leftmost first; None where no thin product pays."""
    if len(delta) == 1 and isinstance(delta[0], Chain):
        parts = _folded(delta[0].parts)
        if len(parts) > 1 and all(part.constant or type(part) in grad.table for part in parts):
            return parts
    op = add(*delta)
    pair = factors(op)
    if pair is None or T * pair[0].shape[1] * sum(op.shape) > cost(op, T):
        return None
    return [Dense(pair[0]), Dense(pair[1])]


def _folded(parts: list[Op]) -> list[Op]:
    """Diagonals at either end go into the matrix beside them: once a step instead of once a token."""
    first, second = parts[0], parts[1]
    if isinstance(first, Diag) and isinstance(second, Dense):
        parts = [Dense(first.v[:, None] * second.w), *parts[2:]]
    if len(parts) > 1 and isinstance(parts[-1], Diag) and isinstance(parts[-2], Dense):
        parts = [*parts[:-2], Dense(parts[-2].w * parts[-1].v)]
    return parts


def _dense_pays(delta: list[Op], T: int) -> bool:
    """Is the walk about to build these as matrices, or no cheaper than if it did?"""
    m, n = delta[0].shape
    walk = sum(cost(t, T) for t in delta)
    return T > 1 and 3 * walk > T * m * n + 4 * PASS * m * n
