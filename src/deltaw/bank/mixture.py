"""One mixture of adapters in a batch: which rows go where, and the factors of its adapters side by side.

The factors are copied once into contiguous stacks, site by site at the first forward, and kept with the mixture; ranks
are padded within a stack only, and adapters of very different ranks go into different stacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..segments import PASS, Sorted, Stack, call, ranges

if TYPE_CHECKING:
    from .slots import Slots
    from .spot import Spot


class Work:
    """The factors of the same adapters in the same order, whatever rows they serve, side by side in either of two forms."""

    def __init__(self, order: list[Slots]):
        self.order = order
        self.stacks: dict[str, list[Stack]] = {}
        self.rows: dict[str, Stack] = {}

    def ranks(self, site: str) -> list[int]:
        return [a.ranks.get(site, 0) for a in self.order]

    @torch.no_grad()
    def stacked(self, spot: Spot, members: list[list[int]]) -> list[Stack]:
        """(g, m, r), (g, r, n) of every group of members, padded to its largest rank."""
        if spot.name not in self.stacks:
            self.stacks[spot.name] = [_stack(spot, [self.order[k] for k in group]) for group in members]
        return self.stacks[spot.name]

    @torch.no_grad()
    def flat(self, spot: Spot) -> Stack:
        """All ranks of all adapters below each other, B transposed: (R, m), (R, n)."""
        if spot.name not in self.rows:
            pairs = [spot.factors(a) for a in self.order if spot.name in a.at]
            self.rows[spot.name] = torch.cat([B.mT for B, _ in pairs]), torch.cat([A for _, A in pairs])
        return self.rows[spot.name]

    def bytes(self) -> int:
        every = [t for stacks in self.stacks.values() for pair in stacks for t in pair]
        return sum(t.numel() * t.element_size() for t in [*every, *(t for pair in self.rows.values() for t in pair)])


def _stack(spot: Spot, adapters: list[Slots]) -> Stack:
    views = [spot.factors(a) for a in adapters]
    ranks = [B.shape[1] for B, _ in views]
    r, (m, n) = max(ranks), (spot.arena.m, spot.arena.n)
    B, A = views[0][0].new_empty(len(views), m, r), views[0][1].new_empty(len(views), r, n)
    for k, own in enumerate(ranks):
        if own < r:
            B[k, :, own:].zero_()
            A[k, own:].zero_()
    even = min(ranks) == r
    Bs = list(B.unbind()) if even else [B[k, :, :own] for k, own in enumerate(ranks)]
    As = list(A.unbind()) if even else [A[k, :own] for k, own in enumerate(ranks)]
    torch._foreach_copy_([*Bs, *As], [*(b for b, _ in views), *(a for _, a in views)])
    return B, A


@dataclass
class Bit:
    """One product: the factors of `count` adapters, and their rows of the batch, sorted or as it is."""

    B: Tensor  # (g, m, r), or (m, r)
    A: Tensor  # (g, n, r), or (n, r): transposed
    first: int
    end: int
    count: int


class Group:
    """A mixture at one site: how many tokens there are per row decides which way its products go.

    dense: all ranks of all adapters as one pair of products, in which a mask leaves every row its own (few adapters, few
    tokens, whatever the segments). runs: one pair per run of neighbouring rows, in place (many tokens). Otherwise rows
    are sorted, and a bucket of adapters is one batched product (many adapters). Members share a stack: consecutive ranks,
    where padding them costs less memory traffic than one more product."""

    def __init__(self, mixture: Mixture, spot: Spot):
        self.mixture, self.spot, work = mixture, spot, mixture.work
        self.call, self.width = call(spot.arena.dtype), spot.arena.m + spot.arena.n
        half = spot.arena.dtype.itemsize == 2  # where small batched products are far below the rate of large ones
        self.slow, self.pass_ = (3, 28) if half else (1, PASS)  # per multiply-add, per entry of a factor
        self.ranks = ranks = work.ranks(spot.name)
        self.there = sorted((k for k, r in enumerate(ranks) if r), key=lambda k: -ranks[k])
        cuts = ranges([ranks[k] for k in self.there], self.pass_ * self.width, 2 * self.call)
        self.members = [sorted(self.there[lo:hi]) for lo, hi in cuts]
        self.known: dict[int, Dense | Runs | Buckets] = {}
        self.orders: dict[int, Sorted] = {}

    @property
    def stacks(self) -> list[Stack]:
        return self.mixture.work.stacked(self.spot, self.members)

    def sorted(self, k: int) -> Sorted:
        """The rows sorted by adapter, for k tokens in each."""
        if k not in self.orders:
            mixture = self.mixture
            units = [k * max(self.ranks[j] for j in group) * self.width * self.slow for group in self.members]
            key = (str(self.members), *units)
            if key not in mixture.sorts:
                groups = [[mixture.rows[j] for j in group] for group in self.members]
                mixture.sorts[key] = Sorted(groups, len(mixture.names), units, 2 * self.call).to(self.spot.arena.device)
            self.orders[k] = mixture.sorts[key]
        return self.orders[k]

    def prices(self, k: int) -> dict[str, float]:
        """Estimated multiply-adds of each way, as many of a large product as take the same time."""
        s, call, rows = self.sorted(k), self.call, self.mixture.rows
        tall, wide = self.spot.arena.m, self.spot.arena.n
        units = [max(self.ranks[j] for j in group) * self.width for group in self.members]
        buckets: float = 2 * call * len(s.buckets)
        for b in s.buckets:
            buckets += b.count * units[b.stack] * (self.pass_ + self.slow * b.size * k)
        if not s.straight:
            buckets += call / 2 + PASS * k * (s.total * wide + (s.total + 2 * s.rows) * tall)
        covered = sum(len(rows[j]) * self.ranks[j] for j in self.there) * self.width * k
        return {
            "dense": 2 * call + call / 4 + k * s.rows * sum(self.ranks) * self.width,
            "runs": 2 * call * len(_runs(rows, self.there)) + covered,
            "buckets": buckets,
        }

    def build(self, way: str, k: int) -> Dense | Runs | Buckets:
        mixture, spot = self.mixture, self.spot
        if way == "dense":
            return Dense(*mixture.work.flat(spot), mixture.mask(self.ranks, spot))
        if way == "runs":
            views = {j: spot.factors(mixture.work.order[j]) for j in self.there}
            found = _runs(mixture.rows, self.there)
            return Runs([Bit(views[j][0], views[j][1].mT, lo * k, hi * k, 1) for j, lo, hi in found])
        return Buckets(self.sorted(k), self.stacks)

    def at(self, k: int) -> Dense | Runs | Buckets:
        if k not in self.known:
            prices = self.prices(k)
            self.known[k] = self.build(min(prices, key=lambda way: prices[way]), k)
        return self.known[k]


def _runs(rows: list[list[int]], there: list[int]) -> list[tuple[int, int, int]]:
    """(adapter, first row, end) of neighbouring rows with the same adapter."""
    out: list[tuple[int, int, int]] = []
    for j in there:
        first = rows[j][0]
        for a, b in zip(rows[j], [*rows[j][1:], -1]):
            if b != a + 1:
                out.append((j, first, a + 1))
                first = b
    return out


class Dense:
    """y += ((x Aᵀ) ⊙ mask) B over all ranks at once."""

    def __init__(self, B: Tensor, A: Tensor, mask: Tensor):
        self.B, self.A, self.mask = B, A.mT, mask

    def add(self, x: Tensor, y: Tensor) -> None:
        """y (T, m) += each row's own B A x, in place; x (T, n). No gradients. The same in the other two."""
        z, mask = x.mm(self.A), self.mask
        if len(z) == len(mask):
            z.mul_(mask)
        else:
            z.view(len(mask), -1, z.shape[1]).mul_(mask[:, None])
        y.addmm_(z, self.B)


class Runs:
    """y[a:b] += B A x[a:b], run by run."""

    def __init__(self, bits: list[Bit]):
        self.bits = bits

    def add(self, x: Tensor, y: Tensor) -> None:
        for b in self.bits:
            y[b.first : b.end].addmm_(x[b.first : b.end].mm(b.A), b.B.mT)


class Buckets:
    """Rows sorted by adapter, one batched product per bucket, rows back in their order."""

    def __init__(self, s: Sorted, stacks: list[Stack]):
        self.sorted = s
        self.bits: list[Bit] = []
        for b in s.buckets:
            B, A = (t[b.first : b.first + b.count] for t in stacks[b.stack])
            self.bits.append(Bit(B, A.mT, b.at, b.at + b.count * b.size, b.count))

    def add(self, x: Tensor, y: Tensor) -> None:
        s, bits = self.sorted, self.bits
        moved, wide = x.reshape(s.rows, -1), y.view(s.rows, -1)
        if not s.straight:
            moved = moved.index_select(0, s.take)
        if len(bits) == 1 and not s.partial:
            out = self.product(bits[0], moved, x.shape[1]).view(s.total, -1)
        else:
            out = y.new_empty(s.total + s.partial, wide.shape[1])
            for b in bits:
                part = self.product(b, moved[b.first : b.end], x.shape[1])
                out[b.first : b.end] = part.view(b.end - b.first, -1)
            if s.partial:
                out[-1].zero_()
        wide.add_(out if s.straight else out.index_select(0, s.back))

    def product(self, b: Bit, x: Tensor, n: int) -> Tensor:
        x = x.view(b.count, -1, n)
        z = torch.bmm(x, b.A)
        if x.shape[1] == 1 and b.B.dtype.itemsize == 2:  # one token each: the matrix first reads it in its own order
            return torch.bmm(b.B, z.mT)
        return torch.bmm(z, b.B.mT)


class Mixture:
    """names[i]: the adapter of row i, None for the base."""

    def __init__(self, names: tuple[str | None, ...], work: Work):
        self.names, self.work = names, work
        place = {a.name: k for k, a in enumerate(work.order)}
        self.rows: list[list[int]] = [[] for _ in work.order]
        for i, n in enumerate(names):
            if n is not None:
                self.rows[place[n]].append(i)
        self.whole = len(work.order) == 1 and len(self.rows[0]) == len(names)  # all rows under one adapter
        self.counts: set[int] = set()
        self.sorts: dict[Any, Sorted] = {}
        self.masks: dict[Any, Tensor] = {}
        self.made: dict[str, Any] = {}  # what each site does for it

    def look(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the model is called with: (batch, tokens) or (batch, tokens, d), beams counted as rows."""
        sizes = {tuple(x.shape[:2]) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() in (2, 3)}
        self.counts = {b for b, _ in sizes} | {b * t for b, t in sizes}

    def tokens(self, shape: torch.Size, width: int, name: str) -> int:
        """Tokens per row of an input (…, width); tokens flattened row by row are recognised. Raises ShapeError."""
        rows = len(self.names)
        flat = len(shape) == (2 if width else 1)
        if shape[0] % rows or (flat and self.counts and shape[0] not in self.counts):
            raise ShapeError(
                f"{name}: the batch has {shape[0]} rows here; bank.rows was told of {rows}. Give one name per row; if that "
                "is so, this layer sees no rows of the batch (but positions, or tokens picked by a router) and cannot take part"
            )
        return (shape.numel() // (width or 1)) // rows

    def mask(self, ranks: list[int], spot: Spot) -> Tensor:
        """(rows, R): 1 where a rank belongs to the row's adapter."""
        key = ("mask", str(ranks))
        if key not in self.masks:
            mask = torch.zeros(len(self.names), sum(ranks), dtype=spot.arena.dtype, device=spot.arena.device)
            at = 0
            for j, r in enumerate(ranks):
                mask[self.rows[j], at : at + r] = 1
                at += r
            self.masks[key] = mask
        return self.masks[key]
