"""Combinators: chain, sum, transpose, Hadamard and Kronecker products, and the constructors that keep them flat.

What a forward calls is written in plain loops: Dynamo traces neither sort keys nor walruses in comprehensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .core import Base, Op
from .leaves import BlockDiag, Dense, Diag, Eye, Zero

Part = Op | Tensor


def as_op(part: Part) -> Op:
    """A vector is a diagonal, a matrix is itself, an operator stays."""
    if isinstance(part, Op):
        return part
    return Diag(part) if part.dim() == 1 else Dense(part)


def chain(*parts: Part) -> Op:
    """The product of its parts, leftmost applied last: chain(B, A)(x) = B (A x). Vectors are diagonals."""
    flat: list[Op] = []
    for part in map(as_op, parts):
        flat.extend(part.parts if isinstance(part, Chain) else [part])
    for left, right in zip(flat, flat[1:]):
        if left.shape[1] != right.shape[0]:
            raise ShapeError(f"chain: {left} cannot follow {right}: {left.shape[1]} != {right.shape[0]}")
    kept = [p for p in flat if not (isinstance(p, Eye) and p.plain)] or flat[:1]
    return kept[0] if len(kept) == 1 else Chain(kept)


def add(*terms: Op) -> Op:
    """The sum of its terms, flat, without zeros; a base leaf comes first so that its kernel can add the bias."""
    flat: list[Op] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Sum) else [term])
    for term in flat[1:]:
        if term.shape != flat[0].shape:
            raise ShapeError(f"sum: {flat[0]} and {term} differ in shape")
    kept = [t for t in flat if not isinstance(t, Zero)] or flat[:1]
    bases = [t for t in kept if isinstance(t, (Base, Eye))]
    kept = bases + [t for t in kept if not isinstance(t, (Base, Eye))]
    return kept[0] if len(kept) == 1 else Sum(kept)


def scale(s: float | Tensor, op: Op) -> Op:
    """s · op with s folded into the smallest tensor, so that a forward pays for it once per step, not per token."""
    if isinstance(s, (int, float)):
        s = float(s)
        if s == 1.0:
            return op
    if isinstance(op, Zero):
        return op
    if isinstance(op, Dense):
        return Dense(op.raw, s * op.c) if isinstance(s, float) else Dense(s * op.w)
    if isinstance(op, Diag):
        return Diag(s * op.v)
    if isinstance(op, BlockDiag):
        return BlockDiag(s * op.t)
    if isinstance(op, Eye):
        return Eye(op.n, op.like, op.c * s)
    if isinstance(op, Sum):
        return Sum([scale(s, t) for t in op.terms])
    if isinstance(op, Chain):
        least = None
        for part in op.parts:
            if isinstance(part, (Dense, Diag, BlockDiag)):
                least = part if least is None or part.like.numel() < least.like.numel() else least
        if least is not None:
            return Chain([scale(s, part) if part is least else part for part in op.parts])
    if isinstance(op, Hadamard):
        if isinstance(op.a, Base):
            return Hadamard(op.a, scale(s, op.b))
        return Hadamard(scale(s, op.a), op.b)
    if isinstance(op, Kron):
        return Kron(scale(s, op.a), op.b)
    return chain(Eye(op.shape[0], op.like, s), op)


class Chain(Op):
    def __init__(self, parts: list[Op]):
        self.parts = parts
        self.shape = (parts[0].shape[0], parts[-1].shape[1])

    @property
    def like(self) -> Tensor:
        return self.parts[0].like

    def __call__(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part(x)
        return x

    def rmv(self, y: Tensor) -> Tensor:
        for part in self.parts:
            y = part.rmv(y)
        return y

    def dense(self) -> Tensor:
        wide = self.parts[-1].dense()
        for part in self.parts:
            wide = wide.to(torch.promote_types(wide.dtype, part.like.dtype))
        for part in reversed(self.parts[:-1]):
            wide = part(wide.mT).mT
        return wide

    def cols(self, i: Tensor) -> Tensor:
        y = self.parts[-1].cols(i)
        for part in reversed(self.parts[:-1]):
            y = part(y)
        return y

    def __repr__(self) -> str:
        return "·".join(map(repr, self.parts))


class Sum(Op):
    def __init__(self, terms: list[Op]):
        self.terms, self.shape = terms, terms[0].shape

    @property
    def like(self) -> Tensor:
        return self.terms[-1].like

    def __call__(self, x: Tensor) -> Tensor:
        y = self.terms[0](x)
        for term in self.terms[1:]:
            y = y + term(x)
        return y

    def rmv(self, y: Tensor) -> Tensor:
        x = self.terms[0].rmv(y)
        for term in self.terms[1:]:
            x = x + term.rmv(y)
        return x

    def dense(self) -> Tensor:
        w = self.terms[0].dense()
        for term in self.terms[1:]:
            w = w + term.dense()
        return w

    def cols(self, i: Tensor) -> Tensor:
        y = self.terms[0].cols(i)
        for term in self.terms[1:]:
            y = y + term.cols(i)
        return y

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.terms)) + ")"


class Transpose(Op):
    def __init__(self, op: Op):
        self.op, self.shape = op, (op.shape[1], op.shape[0])

    @property
    def like(self) -> Tensor:
        return self.op.like

    @property
    def T(self) -> Op:
        return self.op

    def __call__(self, x: Tensor) -> Tensor:
        return self.op.rmv(x)

    def rmv(self, y: Tensor) -> Tensor:
        return self.op(y)

    def dense(self) -> Tensor:
        return self.op.dense().mT


class Hadamard(Op):
    """The entrywise product a ⊙ b. With factors on both sides it is applied through their Khatri-Rao product,
    r_a·r_b·(m + n) multiplications a token, when that is cheaper than building m x n."""

    def __init__(self, a: Op, b: Op):
        if a.shape != b.shape:
            raise ShapeError(f"Hadamard: {a} and {b} differ in shape")
        self.a, self.b, self.shape = a, b, a.shape

    @property
    def like(self) -> Tensor:
        return self.b.like

    def _cheap(self, tokens: int) -> Op | None:
        from .rules import factors, khatri_rao

        p, q = factors(self.a), factors(self.b)
        if p is None or q is None:
            return None
        (m, n), r1, r2 = self.shape, p[0].shape[1], q[0].shape[1]
        # dense: build both factors' m x n, multiply, apply; Khatri-Rao: r1 r2 (m + n) per token plus as much to build
        if r1 * r2 * (m + n) * (tokens + 1) > m * n * (tokens + r1 + r2 + 1):
            return None
        B, A = khatri_rao(p, q)
        return Chain([Dense(B), Dense(A)])

    def __call__(self, x: Tensor) -> Tensor:
        cheap = self._cheap(x.numel() // max(x.shape[-1], 1))
        return F.linear(x, self.dense().to(x.dtype)) if cheap is None else cheap(x)

    def rmv(self, y: Tensor) -> Tensor:
        cheap = self._cheap(y.numel() // max(y.shape[-1], 1))
        return y @ self.dense().to(y.dtype) if cheap is None else cheap.rmv(y)

    def dense(self) -> Tensor:
        return self.a.dense() * self.b.dense()

    def cols(self, i: Tensor) -> Tensor:
        return self.a.cols(i) * self.b.cols(i)

    def __repr__(self) -> str:
        return f"({self.a!r} ⊙ {self.b!r})"


def kron(a: Tensor, b: Tensor) -> Tensor:
    """a ⊗ b of matrices. torch.kron fails on strided views, and on (1, 1) transposes even after contiguous()."""
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


class Kron(Op):
    """The Kronecker product a ⊗ b, row-major: the index of a is the slow one on both axes."""

    def __init__(self, a: Part, b: Part):
        self.a, self.b = as_op(a), as_op(b)
        self.shape = (self.a.shape[0] * self.b.shape[0], self.a.shape[1] * self.b.shape[1])

    @property
    def like(self) -> Tensor:
        return self.a.like

    def __call__(self, x: Tensor) -> Tensor:
        y = self.b(x.reshape(*x.shape[:-1], self.a.shape[1], self.b.shape[1]))  # (..., n1, m2)
        return self.a(y.mT).mT.flatten(-2)

    def rmv(self, y: Tensor) -> Tensor:
        x = self.b.rmv(y.reshape(*y.shape[:-1], self.a.shape[0], self.b.shape[0]))
        return self.a.rmv(x.mT).mT.flatten(-2)

    def dense(self) -> Tensor:
        return kron(self.a.dense(), self.b.dense())

    def cols(self, i: Tensor) -> Tensor:
        k = self.b.shape[1]
        return (self.a.cols(i // k).unsqueeze(-1) * self.b.cols(i % k).unsqueeze(-2)).flatten(-2)

    def __repr__(self) -> str:
        return f"({self.a!r} ⊗ {self.b!r})"
