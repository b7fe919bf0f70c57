"""Open functions over operators: exact factors, the delta to a base, row norms, rank bounds and costs."""

from __future__ import annotations

import torch
from torch import Tensor

from .core import Base, Op, Open, row_norm_of
from .leaves import BlockDiag, Dense, Diag, Eye, Zero
from .nodes import Chain, Hadamard, Kron, Sum, Transpose, add, chain, kron, scale

Pair = tuple[Tensor, Tensor]


@Open[Pair | None]
def factors(op: Op) -> Pair | None:
    """(B, A) with B (m, r) @ A (r, n) == op exactly, without building m x n; None where the algebra gives no such pair."""
    return None


@factors.on(Zero)
def _(op: Zero) -> Pair:
    a = op.like
    return a.new_zeros(op.shape[0], 0), a.new_zeros(0, op.shape[1])


@factors.on(Chain)
def _(op: Chain) -> Pair | None:
    """Cut the product where it is narrowest: between two parts, or inside a part that has factors of its own."""
    inner = [p.shape[1] for p in op.parts[:-1]]
    k = inner.index(min(inner))
    narrow, best = min(inner[k], *op.shape), None
    for i, part in enumerate(op.parts):
        pair = factors(part)
        if pair is not None and pair[0].shape[1] < narrow:
            narrow, best = pair[0].shape[1], (i, pair)
    if best is None and inner[k] >= min(op.shape) and not (isinstance(op.parts[k], Dense) and isinstance(op.parts[k + 1], Dense)):
        return None  # two matrices are a pair whatever their size; of anything else none would be saved
    if best is not None:
        i, (B, A) = best
        left, right = op.parts[:i], op.parts[i + 1 :]
    else:
        B, A = op.parts[k].dense(), op.parts[k + 1].dense()
        left, right = op.parts[:k], op.parts[k + 2 :]
    for part in reversed(left):  # from the cut outwards: every intermediate stays thin, and W is only ever applied
        B = part(B.mT).mT
    for part in right:
        A = part.rmv(A)
    return B, A


@factors.on(Sum)
def _(op: Sum) -> Pair | None:
    pairs = [factors(t) for t in op.terms]
    found = [p for p in pairs if p is not None]
    if len(found) < len(pairs):
        return None
    return torch.cat([b for b, _ in found], 1), torch.cat([a for _, a in found], 0)


@factors.on(Transpose)
def _(op: Transpose) -> Pair | None:
    pair = factors(op.op)
    return None if pair is None else (pair[1].mT, pair[0].mT)


@factors.on(Hadamard)
def _(op: Hadamard) -> Pair | None:
    p, q = factors(op.a), factors(op.b)
    return None if p is None or q is None else khatri_rao(p, q)


def khatri_rao(p: Pair, q: Pair) -> Pair:
    """(B1 A1) ⊙ (B2 A2) = [B1 • B2] [A1 • A2], • over rank pairs, first index slow."""
    B = (p[0][:, :, None] * q[0][:, None, :]).flatten(1)
    A = (p[1][:, None, :] * q[1][None, :, :]).flatten(0, 1)
    return B, A


@factors.on(Kron)
def _(op: Kron) -> Pair | None:
    p, q = _some_factors(op.a), _some_factors(op.b)
    if p[0].shape[1] * q[0].shape[1] >= min(op.shape):
        return None
    return kron(p[0], q[0]), kron(p[1], q[1])


def _some_factors(op: Op) -> Pair:
    """Exact factors of any small operator: its own, or itself beside an identity on the narrower side."""
    pair = factors(op)
    if pair is not None:
        return pair
    w = op.dense()
    eye = torch.eye(min(op.shape), dtype=w.dtype, device=w.device)
    return (eye, w) if op.shape[0] <= op.shape[1] else (w, eye)


@Open[Op]
def delta(op: Op, W: Op) -> Op:
    """op - W, simplified where op contains W: W + D -> D, W(I + X) -> W X, (I + X)W -> X W, d(W + D) -> (d - 1)W + d D; else op + (-1)·W."""
    return Zero(*op.shape, W.like) if op is W else add(op, scale(-1.0, W))


def _without(terms: list[Op], same: Op | type) -> list[Op] | None:
    for k, t in enumerate(terms):
        if t is same or (isinstance(t, Transpose) and isinstance(same, Transpose) and t.op is same.op):
            return terms[:k] + terms[k + 1 :]
        if isinstance(same, type) and isinstance(t, same) and getattr(t, "plain", False):
            return terms[:k] + terms[k + 1 :]
    return None


def _sum(terms: list[Op], like: Op) -> Op:
    return add(*terms) if terms else Zero(*like.shape, like.like)


@delta.on(Sum)
def _(op: Sum, W: Op) -> Op:
    wanted: list[Op] = W.terms if isinstance(W, Sum) else [W]
    rest: list[Op] | None = list(op.terms)
    for w in wanted:
        rest = None if rest is None else _without(rest, w)
    if rest is not None:
        return _sum(rest, W)
    for k, term in enumerate(op.terms):  # a product with W among the terms: simplify that one
        if isinstance(term, Chain) and W in term.parts:
            return add(delta(term, W), *(op.terms[:k] + op.terms[k + 1 :]))
    return add(op, scale(-1.0, W))


@delta.on(Transpose)
def _(op: Transpose, W: Op) -> Op:
    return delta(op.op, W.T).T  # the other end of a tied weight


@delta.on(Chain)
def _(op: Chain, W: Op) -> Op:
    for mine, rest, left in ((op.parts[0], op.parts[1:], True), (op.parts[-1], op.parts[:-1], False)):
        if mine is W and len(rest) == 1:
            other = rest[0]
            if isinstance(other, Sum) and (terms := _without(other.terms, Eye)) is not None:
                inner = _sum(terms, other)
                return chain(W, inner) if left else chain(inner, W)
            if isinstance(other, Diag):
                minus = Diag(other.v - 1)
                return chain(W, minus) if left else chain(minus, W)
    if len(op.parts) == 2 and isinstance(op.parts[0], Diag) and isinstance(op.parts[1], Sum):
        terms = _without(op.parts[1].terms, W)  # d (W + D) - W = (d - 1) W + d D
        if terms is not None:
            return add(chain(Diag(op.parts[0].v - 1), W), chain(op.parts[0], _sum(terms, W)))
    return add(op, scale(-1.0, W))


@Open[Tensor]
def row_norm(op: Op) -> Tensor:
    """The Euclidean norm of every row, (m,), in at least float32; no gradient passes through it."""
    return row_norm_of(op.dense().detach())


@row_norm.on(Sum)
def _(op: Sum) -> Tensor:
    """|W + BA|² by rows = |W|² + <2 W Aᵀ + B A Aᵀ, B>: 2 r m n operations, no m x n temporary."""
    W, rest = op.terms[0], op.terms[1:]
    pair = factors(_sum(rest, op)) if isinstance(W, Base) and rest else None
    if not isinstance(W, Base) or pair is None or pair[0].shape[1] >= min(op.shape) // 2:
        return row_norm_of(op.dense().detach())
    kind = W.like.dtype
    high = torch.promote_types(kind, torch.float32)
    (B, A), own = (t.detach().to(high) for t in pair), W.row_square()
    WA = W(A.to(kind)).to(high).mT  # through the base's own kernel: a quantised one is not decoded
    square = own + (torch.addmm(WA, B, A @ A.mT, beta=2) * B).sum(1)
    # a row that nearly cancels loses digits in the expansion, the base's eps |W|² / |W + BA|² of it: take it directly
    symbolic = torch.compiler.is_compiling() or square.device.type == "meta"
    if not symbolic and bool((square < (0.01 if high == kind else 0.25) * own).any()):
        return row_norm_of(op.dense().detach())
    return square.clamp_min(own * torch.finfo(high).eps).sqrt()  # a traced graph cannot branch: keep the root real


@row_norm.on(Chain)
def _(op: Chain) -> Tensor:
    """The rows of W R are those of W through Rᵀ: no n x n temporary."""
    if not isinstance(op.parts[0], Base):
        return row_norm_of(op.dense().detach())
    w = op.parts[0].dense().detach()
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    for part in op.parts[1:]:
        w = part.rmv(w)
    return row_norm_of(w.detach())


@Open[int]
def rank_bound(op: Op) -> int:
    """An upper bound of the rank that holds for every value of the tensors."""
    return min(op.shape)


@rank_bound.on(Zero)
def _(op: Zero) -> int:
    return 0


@rank_bound.on(Chain)
def _(op: Chain) -> int:
    return min(rank_bound(p) for p in op.parts)


@rank_bound.on(Sum)
def _(op: Sum) -> int:
    return min(min(op.shape), sum(rank_bound(t) for t in op.terms))


@rank_bound.on(Transpose)
def _(op: Transpose) -> int:
    return rank_bound(op.op)


@rank_bound.on(Hadamard)
def _(op: Hadamard) -> int:
    return min(min(op.shape), rank_bound(op.a) * rank_bound(op.b))


@rank_bound.on(Kron)
def _(op: Kron) -> int:
    return rank_bound(op.a) * rank_bound(op.b)


@Open[int]
def cost(op: Op, tokens: int) -> int:
    """Multiply-adds to apply the operator to `tokens` vectors."""
    return tokens * op.shape[0] * op.shape[1]


@cost.on(Diag)
def _(op: Diag, tokens: int) -> int:
    return tokens * op.shape[0]


@cost.on(Eye)
def _(op: Eye, tokens: int) -> int:
    return 0 if op.plain else tokens * op.n


@cost.on(Zero)
def _(op: Zero, tokens: int) -> int:
    return 0


@cost.on(Chain)
def _(op: Chain, tokens: int) -> int:
    return sum(cost(p, tokens) for p in op.parts)


@cost.on(Sum)
def _(op: Sum, tokens: int) -> int:
    return sum(cost(t, tokens) for t in op.terms)


@cost.on(Transpose)
def _(op: Transpose, tokens: int) -> int:
    return cost(op.op, tokens)


@cost.on(Kron)
def _(op: Kron, tokens: int) -> int:
    return cost(op.b, tokens * op.a.shape[1]) + cost(op.a, tokens * op.b.shape[0])


@cost.on(BlockDiag)
def _(op: BlockDiag, tokens: int) -> int:
    return tokens * op.t.numel()
