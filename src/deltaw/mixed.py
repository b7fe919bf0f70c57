"""A mixed batch: every row of the batch has its own adapter, or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .entry import Entry
from .errors import NotLinear, ShapeError
from .ops import Affine, Map, delta, factors
from .segments import Sorted, Stack, call
from .sites import Site
from .sites.prompt import first_tensor


class Rows:
    """names[i] is the adapter of row i (None: the base). `index` numbers the adapters that occur, 0 for none."""

    def __init__(self, names: list[str | None]):
        self.names = names
        self.order = [n for n in dict.fromkeys(names) if n is not None]
        place = {n: k for k, n in enumerate(self.order, 1)}
        self.index = torch.tensor([place[n] if n is not None else 0 for n in names], dtype=torch.int64)
        self.members: dict[int, list[int]] = {k: [] for k in place.values()}  # the rows of every adapter
        for i, n in enumerate(names):
            if n is not None:
                self.members[place[n]].append(i)
        self.counts: set[int] = set()
        self.maps: dict[int, tuple[Any, Map]] = {}  # of each place, and of which values of its tensors

    def look(self, inputs: Iterable[Any]) -> None:
        """What the model is called with: (batch, tokens) or (batch, tokens, d), beams counted as rows."""
        sizes = {tuple(x.shape[:2]) for x in inputs if isinstance(x, Tensor) and x.dim() in (2, 3)}
        self.counts = {b for b, _ in sizes} | {b * t for b, t in sizes}

    def spread(self, x: Tensor, flat: bool) -> Tensor:
        """The adapter number of each slice of x along its first axis; tokens flattened row by row are recognised.

        flat: x has no axis of its own for tokens, so its first one may be anything: it must be a size that was seen.
        """
        count, rows = x.shape[0], len(self.names)
        if count % rows or (flat and self.counts and count not in self.counts):
            raise ShapeError(
                f"the batch has {count} rows here; deltaw.rows was told of {rows}. Give one name per row; if that is so, this "
                "layer sees no rows of the batch (but positions, or tokens picked by a router) and cannot take part"
            )
        return self.index.to(x.device).repeat_interleave(count // rows)


class RowMap(Map):
    """The base once for all rows; every low-rank delta in one batched product over rows sorted by adapter; what has no
    exact factors runs on its own rows."""

    def __init__(self, base: Affine, rows: Rows, entries: dict[int, Entry], signals: dict[str, Tensor]):
        self.base, self.rows, self.signals = base, rows, signals
        self.others: dict[int, Entry] = {}
        pairs: dict[int, Stack] = {}
        for number, entry in entries.items():
            pair = None if entry.signals else low_rank(base, entry)
            if pair is None:
                self.others[number] = entry
            else:
                pairs[number] = pair
        self.order = sorted(pairs, key=lambda number: -len(rows.members[number]))
        self.stack = _stacked([pairs[number] for number in self.order]) if pairs else None
        self.sorted: dict[int, Sorted] = {}  # by tokens per row

    def _products(self, x: Tensor, width: int, lookup: bool) -> Tensor:
        """Every row's own B A x, (rows, tokens per row, m)."""
        assert self.stack is not None
        rows = len(self.rows.names)
        own = x.reshape(rows, -1) if lookup else x.reshape(rows, -1, width)
        tokens = own.shape[1]
        if tokens not in self.sorted:
            B, A = self.stack
            members = [self.rows.members[number] for number in self.order]
            unit = tokens * B.shape[2] * (B.shape[1] + A.shape[2])
            self.sorted[tokens] = Sorted([members], rows, [unit], 2 * call(x.dtype)).to(x.device)
        return self.sorted[tokens].products(own, [self.stack], lookup)

    def _rows(self, x: Tensor, y: Tensor, which: Tensor, lookup: bool) -> Tensor:
        for number, entry in self.others.items():
            at = (which == number).nonzero().squeeze(-1)
            if len(at):
                own = {k: _own(v, at, len(x)) for k, v in self.signals.items()}
                L = entry.layer(self.base, own)
                y = y.index_copy(0, at, (L.cols(x[at]) if lookup else L(x[at])).to(y.dtype))
        return y

    def __call__(self, x: Tensor) -> Tensor:
        which = self.rows.spread(x, x.dim() == 2)
        y = self.base(x)
        if self.stack is not None:
            y = y + self._products(x, x.shape[-1], False).reshape(y.shape).to(y.dtype)
        return self._rows(x, y, which, lookup=False)

    def cols(self, i: Tensor) -> Tensor:
        which = self.rows.spread(i, True)
        y = self.base.cols(i)
        if self.stack is not None:
            y = y + self._products(i, 0, True).reshape(y.shape).to(y.dtype)
        return self._rows(i, y, which, lookup=True)


def _own(v: Tensor, at: Tensor, count: int) -> Tensor:
    """A signal at some of the `count` slices of a layer's input: one number per row (or one for all), or one per token."""
    if v.dim() == 1:
        return v if len(v) == 1 else v.repeat_interleave(count // len(v))[at]
    return (v if len(v) == count else v.flatten(0, 1))[at]


def stamp_of(entries: dict[int, Entry]) -> list[Any]:
    """Differs when a tensor was written to or exchanged, or a module changed its mode."""
    stamp: list[Any] = []
    for entry in entries.values():
        stamp.append(entry.training)
        for owner in (entry, *entry.pool):
            stamp += [(t.data_ptr(), None if t.is_inference() else t._version) for _, t in owner.named()]
    return stamp


def low_rank(base: Affine, entry: Entry) -> Stack | None:
    """Exact factors of the delta, if that is all the method does and they are thinner than the weight."""
    L = entry.layer(base, {})
    if not isinstance(L, Affine) or L.bias is not base.bias:
        return None
    pair = factors(delta(L.op, base.op))
    return None if pair is None or pair[0].shape[1] >= min(base.op.shape) else pair


def mixed(place: Any, site: Site, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of one adapted module under `deltaw.rows`."""
    named = {k: place.entry(name) for k, name in enumerate(rows.order, 1)}
    entries = {k: e for k, e in named.items() if e is not None}
    if not entries:
        return place.base.forward(*args, **kwargs)
    if site.gathers:
        maps = {number: entry.layer(site.leaf(), place.session.signals) for number, entry in entries.items()}
        L = site.by_row(maps, rows.spread(first_tensor(args, kwargs), False))
        return site.run(L, place.base.forward, args, kwargs)
    if site.pointwise:
        if torch.is_grad_enabled() or place.session.signals or torch.compiler.is_compiling():
            return site.run(
                RowMap(site.leaf(), rows, entries, place.session.signals), place.base.forward, args, kwargs
            )
        stamp, (known, L) = stamp_of(entries), rows.maps.get(id(place), (None, None))
        if L is None or known != stamp:  # stacked once for all the tokens of a generation
            L = RowMap(site.leaf(), rows, entries, {})
            rows.maps[id(place)] = (stamp, L)
        return site.run(L, place.base.forward, args, kwargs)
    x = args[0] if args else next(iter(kwargs.values()))
    if len(args) + len(kwargs) != 1 or not isinstance(x, Tensor):
        raise NotLinear(f"{site.name}: a {site.kind} with several inputs cannot be split into the rows of a batch")
    y, which = place.base.forward(x), rows.spread(x, False)
    for number, entry in entries.items():
        at = (which == number).nonzero().squeeze(-1)
        if len(at):
            part = site.run(entry.layer(site.leaf(), place.session.signals), place.base.forward, (x[at],), {})
            y = y.index_copy(0, at, part.to(y.dtype))
    return y


def _stacked(pairs: list[Stack]) -> Stack:
    """One behind the other, padded to the largest rank."""
    r = max(B.shape[1] for B, _ in pairs)
    B = torch.stack([F.pad(B, (0, r - B.shape[1])) for B, _ in pairs])
    return B, torch.stack([F.pad(A, (0, 0, 0, r - A.shape[0])) for _, A in pairs])
