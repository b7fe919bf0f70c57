"""One adapter's exact factors, copied into the arenas in the bank's dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import StateMismatch
from .arena import Arena


@dataclass(eq=False)
class Slots:
    """Where an adapter lies: for every site it changes its rank, and the chunk and first page in that site's arena."""

    name: str
    serial: int
    ranks: dict[str, int]
    at: dict[str, tuple[int, int]]

    def release(self, arenas: dict[str, Arena]) -> None:
        runs: dict[Arena, list[tuple[int, int, int]]] = {}
        for site, (chunk, first) in self.at.items():
            arena = arenas[site]
            runs.setdefault(arena, []).append((chunk, first, pages(self.ranks[site], arena)))
        for arena, given in runs.items():
            arena.give(given)


@dataclass
class Factors:
    """The factors of one adapter, site by site: B (m, r) and A (r, n) as flat tensors of any one dtype; the delta is
    scale · B A. name(k) is what messages call the tensors of site k."""

    sites: Sequence[str]
    ranks: Sequence[int]
    B: list[Tensor]
    A: list[Tensor]
    scales: Sequence[float]
    name: Callable[[int], str]


def pages(rank: int, arena: Arena) -> int:
    return -(-rank // arena.page)


@torch.no_grad()
def store(name: str, serial: int, found: Factors, arenas: dict[str, Arena]) -> Slots:
    """Copy the factors in; raises StateMismatch for values that are not finite, and then nothing is kept."""
    by: dict[Arena, list[int]] = {}
    for k, site in enumerate(found.sites):
        if found.ranks[k]:
            by.setdefault(arenas[site], []).append(k)
    slots = Slots(name, serial, {s: r for s, r in zip(found.sites, found.ranks) if r}, {})
    blocks: list[Tensor] = []
    try:
        for arena, members in by.items():
            wanted = [pages(found.ranks[k], arena) for k in members]
            runs = arena.take(wanted)
            slots.at.update(zip([found.sites[k] for k in members], runs))
            blocks += _fill(arena, members, wanted, runs, found)
        if blocks and not math.isfinite(float(torch.stack([b.sum() for b in blocks]).sum())):
            _finite(found, arenas)
    except BaseException:
        slots.release(arenas)
        raise
    return slots


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _fill(arena: Arena, members: list[int], wanted: list[int], runs: list[tuple[int, int]], found: Factors) -> list[Tensor]:
    """Copy one arena's part; returns the flat tensors that were written to."""
    ranks = [found.ranks[k] for k in members]
    (chunk, first), total = runs[0], sum(wanted)
    side_by_side = runs[-1] == (chunk, first + total - wanted[-1]) and all(c == chunk for c, _ in runs)
    if side_by_side and all(r == w * arena.page for r, w in zip(ranks, wanted)):
        whole = list(arena.flat(chunk, first, total))
        Bs, As = torch.split(whole[0], [r * arena.m for r in ranks]), torch.split(whole[1], [r * arena.n for r in ranks])
    else:
        views = [arena.view(c, p, r) for (c, p), r in zip(runs, ranks)]
        Bs, As = tuple(B.view(-1) for B, _ in views), tuple(A.view(-1) for _, A in views)
        whole = [*Bs, *As]
    scales = [found.scales[k] for k in members]
    sources = [found.B[k] for k in members]
    same = scales[0] if len(set(scales)) == 1 else None
    exact = same is not None and math.frexp(same)[0] in (0.5, -0.5)  # a power of two moves no digit, before or after
    if not exact:
        sources = [B.to(_wide(B)) * s for B, s in zip(sources, scales)]
    torch._foreach_copy_([*Bs, *As], [*sources, *(found.A[k] for k in members)])
    if exact and same is not None and same != 1.0:
        torch._foreach_mul_(list(Bs), same)
    return whole


def _finite(found: Factors, arenas: dict[str, Arena]) -> None:
    """Raise for the first tensor that is not finite (the sum may have overflown without one)."""
    for k, site in enumerate(found.sites):
        dtype = arenas[site].dtype
        for word, tensor, scale in (("B", found.B[k], found.scales[k]), ("A", found.A[k], 1.0)):
            bad = int((~torch.isfinite((tensor.to(_wide(tensor)) * scale).to(dtype))).sum())
            if bad:
                raise StateMismatch(
                    f"{found.name(k)}: {word} has {bad} values of {tensor.numel()} that are NaN or infinite in {dtype}; "
                    "finite numbers were expected. The run that wrote it diverged, or this dtype is too narrow: load an "
                    "earlier checkpoint, or give the bank a wider dtype"
                )
