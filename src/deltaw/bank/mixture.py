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
from ..segments import CALL, PASS, Sorted, Stack, ranges

if TYPE_CHECKING:
    from .slots import Slots
    from .spot import Spot


class Work:
    """The stacks of the same adapters in the same order, whatever rows they serve."""

    def __init__(self, order: list[Slots]):
        self.order = order
        self.stacks: dict[str, list[Stack]] = {}

    def members(self, site: str, width: int) -> list[list[int]]:
        """Which adapters (numbers in `order`, which stays) share a stack at this site: consecutive ranks, where padding
        them costs less memory traffic than one more product."""
        ranks = [a.ranks.get(site, 0) for a in self.order]
        there = sorted((k for k, r in enumerate(ranks) if r), key=lambda k: -ranks[k])
        cuts = ranges([ranks[k] for k in there], PASS * width, 2 * CALL)
        return [sorted(there[lo:hi]) for lo, hi in cuts]

    def at(self, spot: Spot, members: list[list[int]]) -> list[Stack]:
        if spot.name not in self.stacks:
            self.stacks[spot.name] = [_stack(spot, [self.order[k] for k in group]) for group in members]
        return self.stacks[spot.name]

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for stacks in self.stacks.values() for pair in stacks for t in pair)


@torch.no_grad()
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
    """One product: the factors of some adapters, transposed as they are used, and their rows of the sorted batch."""

    A: Tensor  # (g, n, r)
    B: Tensor  # (g, r, m)
    first: int
    end: int
    size: int


class Schedule:
    """How one site treats one number of tokens per row: through sorted rows, or run by run in place."""

    def __init__(self, spot: Spot, mixture: Mixture, members: list[list[int]], stacks: list[Stack], k: int):
        m, n = spot.arena.m, spot.arena.n
        count, units = len(mixture.names), [k * B.shape[2] * (m + n) for B, _ in stacks]
        groups = [[mixture.rows[j] for j in group] for group in members]
        key = (str(members), *units)
        if key not in mixture.sorts:
            mixture.sorts[key] = Sorted(groups, count, units).to(stacks[0][0].device)
        self.sorted = s = mixture.sorts[key]
        self.bits = [
            Bit(stacks[b.stack][1][b.first : b.first + b.count].mT, stacks[b.stack][0][b.first : b.first + b.count].mT,
                b.at, b.at + b.count * b.size, b.count)
            for b in s.buckets
        ]  # fmt: skip
        moved = 0 if s.straight else 3 * CALL + PASS * k * (s.total * n + (s.total + 2 * count) * m)
        sort = 2 * CALL * len(s.buckets) + moved + s.padding * max(units)
        self.runs: list[Bit] | None = None
        found = _runs(groups)
        if 2 * CALL * len(found) < sort:
            self.runs = [
                Bit(stacks[i][1][j].mT, stacks[i][0][j].mT, lo * k, hi * k, 1) for i, j, lo, hi in found
            ]  # fmt: skip

    def add(self, x: Tensor, y: Tensor) -> None:
        """y (T, m) += each row's own B A x, in place; x (T, n). No gradients."""
        if self.runs is not None:
            for run in self.runs:
                y[run.first : run.end].addmm_(x[run.first : run.end].mm(run.A), run.B)
            return
        s, bits = self.sorted, self.bits
        n, m = x.shape[1], y.shape[1]
        if s.straight:
            for b in bits:
                own = (x, y) if len(bits) == 1 else (_part(x, b, s.rows), _part(y, b, s.rows))
                z = torch.bmm(own[0].view(b.size, -1, n), b.A)
                own[1].view(b.size, -1, m).baddbmm_(z, b.B)
            return
        moved = x.reshape(s.rows, -1).index_select(0, s.take)
        wide = y.view(s.rows, -1)
        if len(bits) == 1 and not s.partial:
            b = bits[0]
            out = torch.bmm(torch.bmm(moved.view(b.size, -1, n), b.A), b.B).view(s.total, -1)
        else:
            out = y.new_empty(s.total + s.partial, wide.shape[1])
            for b in bits:
                z = torch.bmm(moved[b.first : b.end].view(b.size, -1, n), b.A)
                torch.bmm(z, b.B, out=out[b.first : b.end].view(b.size, -1, m))
            if s.partial:
                out[-1].zero_()
        wide.add_(out.index_select(0, s.back))


def _part(t: Tensor, b: Bit, rows: int) -> Tensor:
    k = len(t) // rows
    return t[b.first * k : b.end * k]


def _runs(groups: list[list[list[int]]]) -> list[tuple[int, int, int, int]]:
    """(stack, adapter, first row, end) of neighbouring rows with the same adapter."""
    out: list[tuple[int, int, int, int]] = []
    for i, stack in enumerate(groups):
        for j, group in enumerate(stack):
            first = group[0]
            for a, b in zip(group, [*group[1:], -1]):
                if b != a + 1:
                    out.append((i, j, first, a + 1))
                    first = b
    return sorted(out, key=lambda run: run[2])


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


class Group:
    """A mixture at one site."""

    def __init__(self, mixture: Mixture, spot: Spot):
        self.mixture, self.spot = mixture, spot
        self.members = mixture.work.members(spot.name, spot.arena.m + spot.arena.n)
        self.stacks = mixture.work.at(spot, self.members)
        self.by: dict[int, Schedule] = {}

    def of(self, x: Tensor, width: int) -> Schedule:
        k = self.mixture.tokens(x.shape, width, self.spot.name)
        if k not in self.by:
            self.by[k] = Schedule(self.spot, self.mixture, self.members, self.stacks, k)
        return self.by[k]
