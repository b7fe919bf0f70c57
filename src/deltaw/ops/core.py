"""Map, Op, Affine: the three types everything else is written in.

A `Map` is any function on the last axis; an `Op` is a linear Map of a known shape (m, n); an `Affine` is `op(x) + bias`.
Merging, transposing, factorising exist on `Op` only: a gate or a router cannot be merged by construction.

Nodes hold tensors as they are stored (the masters) and cast *themselves* to the dtype of what they are applied to:
the small weight is cast, never the activation, and the output has the input's dtype. Traced code must not use `@` on
nodes (Dynamo cannot trace it on user objects), so composition is written `chain(B, A)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import NotLinear, ShapeError

R = TypeVar("R")


class Map:
    """A function on the last axis: x (..., n) -> y (..., m)."""

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def cols(self, i: Tensor) -> Tensor:
        """What an embedding does: the columns of the map picked by integer ids, (...) -> (..., m)."""
        raise NotLinear(f"{type(self).__name__} is not linear: it has no columns to look up by id")


class Op(Map):
    """A linear map of shape (m, n): m = out, n = in."""

    shape: tuple[int, int]
    constant = False  # holds no tensor that could be trained

    @property
    def like(self) -> Tensor:
        """A tensor of the device and dtype this operator is stored in."""
        raise NotImplementedError

    def rmv(self, y: Tensor) -> Tensor:
        """The transpose applied: y (..., m) -> (..., n)."""
        return y @ self.dense().to(y.dtype)

    def dense(self) -> Tensor:
        """The m x n matrix. A cold path: forwards avoid it where they can."""
        a = self.like
        return self(torch.eye(self.shape[1], dtype=a.dtype, device=a.device)).mT

    def cols(self, i: Tensor) -> Tensor:
        return torch.nn.functional.embedding(i, self.dense().mT)

    @property
    def T(self) -> Op:
        from .nodes import Transpose

        return Transpose(self)

    def __add__(self, other: Op) -> Op:
        from .nodes import add

        return add(self, other)

    def __sub__(self, other: Op) -> Op:
        return self + (-1.0) * other

    def __rmul__(self, s: float | Tensor) -> Op:
        from .nodes import scale

        return scale(s, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"


def row_norm_of(w: Tensor) -> Tensor:
    """The Euclidean norm of every row of a matrix, in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(w, dim=1, dtype=torch.promote_types(w.dtype, torch.float32))
    return norm


class Base(Op):
    """The frozen base weight W as a leaf; each kind of site supplies one (dense, convolution, quantised, ...).

    Call it to apply W without its bias; `affine(x, bias)` lets the base's own kernel add the bias.
    `dense()` is counted (see `watch_dense`), so a law can refuse a forward that materialises an opaque base undeclared.
    """

    bias: Tensor | None = None

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = self(x)
        return y if bias is None else y + bias.to(y.dtype)

    def weight(self) -> Tensor:
        """The m x n matrix (uncounted); subclasses implement this."""
        raise NotImplementedError

    def direct(self, x: Tensor) -> Tensor | None:
        """W itself where this base is exactly x Wᵀ, so that a fused path may take the product over; None elsewhere."""
        return None

    def row_square(self) -> Tensor:
        """|W|² by rows, (m,), in at least float32."""
        return row_norm_of(self.dense()).square()

    def dense(self) -> Tensor:
        if _watch is not None:
            _watch.append(self)
        return self.weight()


_watch: list[Base] | None = None


class watch_dense:
    """Context manager: the list of base leaves whose `dense()` was called inside."""

    def __enter__(self) -> list[Base]:
        global _watch
        self.outer, _watch = _watch, []
        return _watch

    def __exit__(self, *_: object) -> None:
        global _watch
        _watch = self.outer


class Affine(Map):
    """y = op(x) + bias; bias (m,) or None. A site's base is one, and so is what every mergeable method returns."""

    memo: dict[Any, Any] | None = None  # of one that is kept between forwards: what a fused path knows of it

    def __init__(self, op: Op, bias: Tensor | None = None):
        if bias is not None and bias.shape != (op.shape[0],):
            raise ShapeError(f"a bias of shape ({op.shape[0]},) was expected, {tuple(bias.shape)} was found")
        self.op, self.bias = op, bias

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # a compiler fuses the plain walk by itself
            for fast in FAST:
                y = fast(self, x)
                if y is not None:
                    return y
        return self.walk(x)

    def walk(self, x: Tensor) -> Tensor:
        """The plain evaluation, node by node: what every fused path has to equal."""
        from .nodes import Chain, Sum

        op, bias = self.op, self.bias
        if isinstance(op, Base):
            return op.affine(x, bias)
        if isinstance(op, Chain) and isinstance(op.parts[0], Base):  # W (R x) + b: the same kernel, at another input
            for part in reversed(op.parts[1:]):
                x = part(x)
            return op.parts[0].affine(x, bias)
        if isinstance(op, Sum) and isinstance(op.terms[0], Base):  # the base's own kernel adds the bias
            y = op.terms[0].affine(x, bias)
            for term in op.terms[1:]:
                y = y + term(x)
            return y
        y = op(x)
        return y if bias is None else y + bias.to(y.dtype)

    def cols(self, i: Tensor) -> Tensor:
        y = self.op.cols(i)
        return y if self.bias is None else y + self.bias.to(y.dtype)


FAST: list[Callable[[Affine, Tensor], Tensor | None]] = []  # fused paths by pattern (deltaw.fused), asked in turn


class Open(Generic[R]):
    """A function open for new node types: looked up along the class order, else the default (the dense fallback)."""

    def __init__(self, default: Callable[..., R]):
        self.default, self.table = default, dict[type, Callable[..., R]]()
        self.__doc__ = default.__doc__

    def on(self, kind: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
        def register(f: Callable[..., R]) -> Callable[..., R]:
            self.table[kind] = f
            return f

        return register

    def __call__(self, op: Op, *args: Any) -> R:
        for kind in type(op).__mro__:
            if kind in self.table:
                return self.table[kind](op, *args)
        return self.default(op, *args)
