"""Which path evaluates an expression: the cheapest one by estimated multiply-adds, forward and backward together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..ops import Affine, Base, Chain, Dense, Diag, Eye, Hadamard, Op, Sum, add, cost, factors, rank_bound
from ..ops.core import FAST
from .columns import columns, pays
from .dropout import Dropped, draw
from .joined import joined
from .leaves import grad
from .pair import pair
from .thin import Shape, Thin, compute

PASS = 16  # multiply-adds in the time of moving one entry of a matrix once
WIDE = 2.5  # how much slower a product of float32 masters is than one in half precision
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
    T = x.numel() // x.shape[-1]
    if L.memo is None:
        way = choose(op, x, T)
    else:
        key = (T, x.dtype, torch.is_grad_enabled())
        way = L.memo.get(key)
        if way is None:
            way = choose(op, x, T)
            if len(L.memo) > 64:
                L.memo.clear()
            L.memo[key] = way if way.lasting else None
    return way.run(L.bias, x)


FAST.append(fast)


@dataclass
class Way:
    """A chosen path. `lasting`: made of the expression's own tensors, so that it stays true whatever they become."""

    base: Base | None = None
    d: Tensor | None = None
    parts: list[Op] | None = None  # thin
    dense: list[Op] | None = None  # joined
    p: float = 0.0
    moves_input: bool = False
    lasting: bool = True
    pair: bool = False
    columns: Chain | None = None  # D and the columns it is added to

    def __post_init__(self) -> None:
        if self.parts is not None:
            bare, slots, c, self.tensors = taken_apart(self.parts)
            self.shape = Shape(bare, slots, c, self.p)
            self.pair = bare == [Dense, Dense] and not (self.p or self.moves_input or self.d is not None)

    def run(self, bias: Tensor | None, x: Tensor) -> Tensor | None:
        base = self.base
        if base is None:
            return None
        if self.columns is not None:
            W, (D, pick) = base.direct(x), self.columns.parts
            return None if W is None else columns(x, W, bias, D.w, pick.columns)  # type: ignore[attr-defined]
        if self.dense is not None:
            W = base.direct(x)
            return None if W is None else joined(W, self.dense, self.d, bias, x)
        if self.pair and (W := base.direct(x)) is not None:
            return pair(x, W, bias, *self.tensors, self.shape.c)
        shape = replace(self.shape, seed=draw()) if self.p else self.shape
        if self.moves_input:
            return base.affine(thin_product(shape, x, None, None, None, None, self.tensors), bias)
        W, y0 = base.direct(x), None
        if W is None:
            y0, bias = (base(x), bias) if self.d is not None else (base.affine(x, bias), None)
        return thin_product(shape, x, W, y0, bias, self.d, self.tensors)


def thin_product(shape: Shape, x: Tensor, *rest: Any) -> Tensor:
    """`Thin`, or what it computes where nothing is recorded."""
    *fixed, tensors = rest
    if torch.is_grad_enabled():
        return Thin.apply(shape, x, *fixed, *tensors)  # type: ignore[no-any-return]
    return compute(shape, x, *fixed, tensors)[0]


def choose(op: Op, x: Tensor, T: int) -> Way:
    """The way for this expression and this many tokens."""
    d = None
    if isinstance(op, Chain):
        head, rest = op.parts[0], op.parts[1:]
        if isinstance(head, Base):  # W (I + P): the delta moves the input
            inner = rest[0] if len(rest) == 1 else None
            if not isinstance(inner, Sum) or not (isinstance(inner.terms[0], Eye) and inner.terms[0].plain):
                return Way()
            parts, own = thin(inner.terms[1:], T)
            return Way(lasting=own) if parts is None else Way(head, parts=parts, moves_input=True, lasting=own)
        if isinstance(head, Diag) and len(rest) == 1:
            d, op = head.v, rest[0]
    if not isinstance(op, Sum) or not isinstance(op.terms[0], Base):
        return Way()
    base, delta, p = op.terms[0], op.terms[1:], 0.0
    if len(delta) == 1 and isinstance(delta[0], Dropped):
        p, delta = delta[0].p, [delta[0].op]
    direct = base.direct(x)
    if direct is not None and not p and d is None and picked(delta) and pays(*op.shape, delta[0].parts[0].shape[1], T):
        return Way(base, columns=delta[0], lasting=True)
    parts, own = thin(delta, T)
    if direct is not None and not p and T > 1 and not any(map(drops, delta)):
        if work(delta if parts is None else parts, T) > dense_work(delta, T, x.dtype):
            return Way(base, d, dense=delta, lasting=own)
    return Way(lasting=own) if parts is None else Way(base, d, parts, p=p, lasting=own)


def picked(delta: list[Op]) -> bool:
    """A matrix behind an operator that picks entries of x, and says so by an attribute `columns`?"""
    parts = delta[0].parts if len(delta) == 1 and isinstance(delta[0], Chain) else []
    return len(parts) == 2 and isinstance(parts[0], Dense) and getattr(parts[1], "columns", None) is not None


def work(parts: list[Op], T: int) -> int:
    """Multiply-adds of adding a product: forward, its transpose, and the gradient of what is trained."""
    if not torch.is_grad_enabled():
        return sum(cost(part, T) for part in parts)
    return sum(cost(part, T) * (2 + part.like.requires_grad) for part in parts)


def dense_work(delta: list[Op], T: int, dtype: torch.dtype) -> float:
    """Of building the terms as matrices and adding them to W, and of their gradients through that of the sum."""
    m, n = delta[0].shape
    build = (WIDE if dtype.itemsize < 4 else 1.0) * sum(built(term) for term in delta)
    return T * m * n + 3 * build + 4 * PASS * m * n if torch.is_grad_enabled() else build + 2 * PASS * m * n


def built(op: Op) -> int:
    """Multiply-adds of `op.dense()`."""
    if isinstance(op, Hadamard):
        return built(op.a) + built(op.b)
    if isinstance(op, Chain):  # the last part, and the others applied to its columns
        return sum(cost(part, op.shape[1]) for part in op.parts[:-1])
    return 0 if isinstance(op, Base) else op.shape[0] * op.shape[1]


def thin(delta: list[Op], T: int) -> tuple[list[Op] | None, bool]:
    """(the factors of a delta as leaves and constant operators, leftmost first; are these the expression's own?). None
    where no thin product pays."""
    if len(delta) == 1 and isinstance(delta[0], Chain):
        parts = folded(delta[0].parts)
        if len(parts) > 1 and all(part.constant or type(part) in grad.table for part in parts):
            return parts, all(a is b for a, b in zip(parts, delta[0].parts))
    op = add(*delta)
    if any(map(drops, delta)) or T * rank_bound(op) * sum(op.shape) > cost(op, T) or decodes(op):  # asked without computing anything
        return None, True
    pair = factors(op)
    return (None if pair is None else [Dense(pair[0]), Dense(pair[1])]), False


def drops(op: Op) -> bool:
    """Is there dropout anywhere in it? Its matrix and its factors are the mean, which may not stand for it in training."""
    inside = op.terms if isinstance(op, Sum) else op.parts if isinstance(op, Chain) else []
    return isinstance(op, Dropped) or any(map(drops, inside))


def decodes(op: Op) -> bool:
    """Would factors of it need the transpose of a base that only its dense matrix can give? X W does, W X does not."""
    if isinstance(op, Sum):
        return any(decodes(term) for term in op.terms)
    return isinstance(op, Chain) and any(map(hidden, op.parts[1:]))


def hidden(op: Op) -> bool:
    """Is a base without a transpose somewhere in it?"""
    inside = op.terms if isinstance(op, Sum) else op.parts if isinstance(op, Chain) else []
    return (isinstance(op, Base) and type(op).rmv is Op.rmv) or any(map(hidden, inside))


def folded(parts: list[Op]) -> list[Op]:
    """Diagonals at either end go into the matrix beside them: once a step instead of once a token."""
    first, second = parts[0], parts[1]
    if isinstance(first, Diag) and isinstance(second, Dense):
        parts = [Dense(first.v[:, None] * second.w), *parts[2:]]
    if len(parts) > 1 and isinstance(parts[-1], Diag) and isinstance(parts[-2], Dense):
        parts = [*parts[:-2], Dense(parts[-2].w * parts[-1].v)]
    return parts


def taken_apart(parts: list[Op]) -> tuple[list[Op | type], list[int | None], float, list[Tensor]]:
    """The parts with their numbers and tensors taken out, the latter to be handed to autograd: see `Shape`."""
    bare: list[Op | type] = []
    slots: list[int | None] = []
    tensors: list[Tensor] = []
    c = 1.0
    for part in parts:
        bare.append(part if part.constant else type(part))
        slots.append(None if part.constant else len(tensors))
        if not part.constant:
            tensors.append(part.like)
            c *= getattr(part, "c", 1.0)
    return bare, slots, c, tensors
