"""New weights out of an expression in the old ones, in blocks of rows that stay in cache: one pass, one rounding.

The product and the sum are formed in float32 (float64 for such a base) and rounded to the base's dtype once. A base
plus thin factors goes by one addmm a block; anything else evaluates its rows; what has no cheap rows is built once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .convert import site_layer
from .ops import Affine, Base, Chain, Dense, Diag, Eye, Hadamard, Op, Open, Sum, Transpose, Zero, chain, delta, factors

if TYPE_CHECKING:
    from .attach import Adapted

BLOCK = 1 << 20  # entries formed at a time: few enough for a cache, enough to keep a product busy
THIN = 48  # factors up to this rank are multiplied into the base; wider ones are products of their own

Rows = Callable[[int, int], Tensor]


def high(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# ---- rows of an expression


@Open[Rows]
def rows(op: Op, dtype: torch.dtype) -> Rows:
    """f(i, j) -> rows i to j of the matrix, in `dtype`. Without a rule for the node the matrix is built, once."""
    made: list[Tensor] = []

    def f(i: int, j: int) -> Tensor:
        if not made:
            made.append(op.dense())
        return made[0][i:j].to(dtype)

    return f


@rows.on(Zero)
def _(op: Zero, dtype: torch.dtype) -> Rows:
    return lambda i, j: torch.zeros(j - i, op.shape[1], dtype=dtype, device=op.like.device)


@rows.on(Dense)
def _(op: Dense, dtype: torch.dtype) -> Rows:
    w = op.w
    return lambda i, j: w[i:j].to(dtype)


@rows.on(Sum)
def _(op: Sum, dtype: torch.dtype) -> Rows:
    terms = [rows(t, dtype) for t in op.terms]

    def f(i: int, j: int) -> Tensor:
        w = terms[0](i, j)
        for term in terms[1:]:
            w = w + term(i, j)
        return w

    return f


@rows.on(Hadamard)
def _(op: Hadamard, dtype: torch.dtype) -> Rows:
    a, b = rows(op.a, dtype), rows(op.b, dtype)
    return lambda i, j: a(i, j) * b(i, j)


@rows.on(Transpose)
def _(op: Transpose, dtype: torch.dtype) -> Rows:
    pushed = flipped(op.op)
    return rows.default(op, dtype) if isinstance(pushed, Transpose) else rows(pushed, dtype)


@rows.on(Chain)
def _(op: Chain, dtype: torch.dtype) -> Rows:
    first, rest = op.parts[0], op.parts[1:]
    if isinstance(first, Diag):
        v, inner = first.v.to(dtype), rows(chain(*rest), dtype)
        return lambda i, j: v[i:j, None] * inner(i, j)
    if isinstance(first, Eye):
        c, below = first.c, rows(chain(*rest), dtype)
        return lambda i, j: c * below(i, j)
    if not _starts_rows(first) or any(_is_base(p) for p in rest):
        return rows.default(op, dtype)
    head = rows(first, dtype)

    def f(i: int, j: int) -> Tensor:
        w = head(i, j)
        for part in rest:
            w = part.rmv(w)
        return w

    return f


def _is_base(op: Op) -> bool:
    return isinstance(op, Base) or (isinstance(op, Transpose) and isinstance(op.op, Base))


def _starts_rows(op: Op) -> bool:
    """Rows of a product are the rows of its first factor times the others: cheap if those rows are there already."""
    return isinstance(op, Dense) or _is_base(op) or (isinstance(op, Sum) and _is_base(op.terms[0]))


@Open[Op]
def flipped(op: Op) -> Op:
    """The transpose, with the transposition pushed down to the leaves."""
    return op.T


@flipped.on(Transpose)
def _(op: Transpose) -> Op:
    return op.op


@flipped.on(Dense)
def _(op: Dense) -> Op:
    return Dense(op.w.mT)


@flipped.on(Diag)
def _(op: Diag) -> Op:
    return op


@flipped.on(Sum)
def _(op: Sum) -> Op:
    return Sum([flipped(t) for t in op.terms])


@flipped.on(Chain)
def _(op: Chain) -> Op:
    return chain(*[flipped(p) for p in reversed(op.parts)])


@flipped.on(Hadamard)
def _(op: Hadamard) -> Op:
    return Hadamard(flipped(op.a), flipped(op.b))


# ---- a base plus thin factors


@dataclass
class Thin:
    """diag(d) (W + B A) with B (m, r), A (r, n); d (m,) or None."""

    B: Tensor
    A: Tensor
    d: Tensor | None = None


def thin(op: Op, W: Op) -> Thin | None:
    """The expression as one, or None: no exact factors, or so wide that its rows cost no more."""
    d = None
    if isinstance(op, Chain) and isinstance(op.parts[0], Diag):
        d, op = op.parts[0].v, chain(*op.parts[1:])
    pair = factors(delta(op, W))
    if pair is None or pair[0].shape[1] > THIN:
        return None
    return Thin(*pair, d)


_products: dict[str, bool] = {}


def bfloat16_products(device: torch.device) -> bool:
    """Does this device multiply bfloat16 natively, summing in float32 and rounding once? Asked by trying, once."""
    if device.type not in _products:
        native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        ok = device.type != "cpu" or (native is not None and bool(native()))
        if ok:
            n = 64
            grid = torch.arange(n * n, dtype=torch.float32, device=device).reshape(n, n)
            W, B, A = (torch.sin(grid * s).to(torch.bfloat16) for s in (0.37, 0.71, 1.13))
            exact = (W.double() + B.double() @ A.double()).to(torch.bfloat16)
            ok = bool(torch.addmm(W, B, A).ne(exact).sum() <= n * n // 100)
        _products[device.type] = ok
    return _products[device.type]


def split(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """B A as a product of bfloat16 factors of three times the rank: B ≈ B1 + B2, A ≈ A1 + A2, without B2 A2.

    What is left out is about 2^-17 of the product: far below the rounding of a bfloat16 sum, 2^-9.
    """
    (B1, B2), (A1, A2) = _halves(B), _halves(A)
    return torch.cat([B1, B2, B1], 1), torch.cat([A1, A1, A2], 0)


def _halves(t: Tensor) -> tuple[Tensor, Tensor]:
    first = t.to(torch.bfloat16)
    return first, (t - first.to(t.dtype)).to(torch.bfloat16)


# ---- one pass


@dataclass
class Tally:
    """What a pass did to the weights, summed by block: entries changed, and the squares of what was wanted and missed."""

    changed: int = 0
    wanted: float = 0.0
    missed: float = 0.0

    def look(self, old: Tensor, new: Tensor, wanted: Tensor | None) -> None:
        self.changed += int((new != old).sum())
        if wanted is not None:
            off = (new.to(wanted.dtype) - old).sub_(wanted)
            self.wanted += float(torch.linalg.vector_norm(wanted)) ** 2
            self.missed += float(torch.linalg.vector_norm(off)) ** 2

    @property
    def lost(self) -> float:
        """|(new - old) - wanted| / |wanted|."""
        return math.sqrt(self.missed / self.wanted) if self.wanted > 0 else 0.0


def write(op: Op, W: Base, old: Tensor, new: Tensor, tally: Tally | None = None) -> None:
    """new = op, an expression in W, rounded to the dtype of `new`. old: the matrix of W; both (m, n), of one layout."""
    base: Op = W
    if isinstance(op, Transpose):
        op = flipped(op.op)
    if old.stride(0) == 1 and old.stride(1) != 1:  # stored the other way round: go through it as it lies
        op, base, old, new = flipped(op), W.T, old.mT, new.mT
    step = max(BLOCK // max(old.shape[1], 1), 1)
    block = _block(op, base, old, new)
    wanted = None if tally is None else rows(delta(op, base), high(old.dtype))
    for i in range(0, old.shape[0], step):
        j = min(i + step, old.shape[0])
        block(i, j)
        if tally is not None and wanted is not None:
            tally.look(old[i:j], new[i:j], wanted(i, j))


def _block(op: Op, base: Op, old: Tensor, new: Tensor) -> Callable[[int, int], object]:
    """f(i, j): form rows i to j of `new`."""
    dtype, found = high(old.dtype), thin(op, base)
    if found is None:
        of = rows(op, dtype)
        return lambda i, j: new[i:j].copy_(of(i, j))
    B, A, d = found.B.to(dtype), found.A.to(dtype), found.d
    if d is None and old.dtype == torch.bfloat16 and bfloat16_products(old.device):
        B, A = split(B, A)
    if d is None and old.dtype == B.dtype == new.dtype:
        return lambda i, j: torch.addmm(old[i:j], B[i:j], A, out=new[i:j])
    if d is not None:
        B, d = d.to(dtype)[:, None] * B, d.to(dtype)[:, None]

    def f(i: int, j: int) -> object:
        w = old[i:j].to(dtype, copy=True) if d is None else old[i:j] * d[i:j]
        return new[i:j].copy_(w.addmm_(B[i:j], A))

    return f


# ---- what a site changes


@dataclass
class Change:
    """One parameter, or one expert of a stack, that a site changes. `fill(out, tally)` writes the new values to a tensor
    laid out like the old one. For a weight: the expression `op` in the base `W`."""

    name: str
    index: int | None
    fill: Callable[[Tensor, Tally | None], None] = field(repr=False)
    old: Callable[[], Tensor] = field(repr=False)
    op: Op | None = None
    W: Base | None = None
    matrix: Callable[[], Tensor | None] = field(default=lambda: None, repr=False)

    def pick(self, tensor: Tensor) -> Tensor:
        """The part of a parameter of that name that is meant."""
        return tensor if self.index is None else tensor[self.index]


def changes(adapted: Adapted, a: Any) -> list[Change]:
    """What one site changes, without computing any of it. Raises NotMergeable where no weight can hold it."""
    from .attach import _address

    L, leaf = site_layer(adapted, a), a.site.leaf()
    module, _ = _address(a)
    prefix = f"{module}." if module else ""
    if not isinstance(L, Affine):
        return [_given(prefix, a.site, word, t) for word, t in a.site.merged(L).items()]
    bias = None if L.bias is leaf.bias else L.bias
    hollow = torch.empty(leaf.op.shape, device="meta")
    return [
        _weight(prefix, a.site, word, L.op, leaf.op) if bias is None or t is not bias else _given(prefix, a.site, word, bias)
        for word, t in a.site.written(hollow, bias).items()
    ]


def _split_word(word: str) -> tuple[str, int | None]:
    stem, _, number = word.partition("[")
    return stem, int(number[:-1]) if number else None


def _stored(site: Any, word: str) -> Tensor:
    """The base's own parameter, or slice of a stack, behind a word of `Site.written`."""
    stem, index = _split_word(word)
    tensor: Tensor = site.module.get_parameter(stem).detach()
    return tensor if index is None else tensor[index]


def _given(prefix: str, site: Any, word: str, value: Tensor) -> Change:
    def fill(out: Tensor, tally: Tally | None) -> None:
        out.copy_(value.detach())
        if tally is not None:
            tally.look(_stored(site, word), out, None)

    stem, index = _split_word(word)
    return Change(prefix + stem, index, fill, lambda: _stored(site, word))


def _weight(prefix: str, site: Any, word: str, op: Op, W: Base) -> Change:
    def matrix() -> Tensor | None:
        """The (m, n) matrix as a view of the parameter; None where it is none."""
        own, view = _stored(site, word), W.weight().detach()
        laid = site.written(view, None)[word]
        same = laid.shape == own.shape and laid.stride() == own.stride() and laid.data_ptr() == own.data_ptr()
        return view if same and laid.dtype == own.dtype else None

    def fill(out: Tensor, tally: Tally | None) -> None:
        own, view = _stored(site, word), matrix()
        if view is not None and out.stride() == own.stride():
            write(op, W, view, out.as_strided(view.shape, view.stride(), out.storage_offset()), tally)
            return
        out.copy_(site.written(op.dense(), None)[word])
        if tally is not None:
            tally.look(own, out, site.written(delta(op, W).dense().to(high(own.dtype)), None)[word])

    stem, index = _split_word(word)
    return Change(prefix + stem, index, fill, lambda: _stored(site, word), op, W, matrix)
