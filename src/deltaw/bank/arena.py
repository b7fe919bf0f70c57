"""Room for the factors of all sites of one shape: pages of `page` ranks, handed out in runs, given back, used again.

Chunks are allocated once and never moved, so what is stored stays where it is and loading costs the same whatever is
there already; each chunk is as large as all before it together, up to a limit.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

import torch
from torch import Tensor

from .pages import in_huge_pages

LIMIT = 256 * 2**20  # bytes of a chunk, unless one adapter needs more


@dataclass
class Chunk:
    """B: pages · page · m numbers, A: pages · page · n."""

    B: Tensor
    A: Tensor
    pages: int


Place = tuple[Chunk, int]  # where a run of pages starts


class Arena:
    def __init__(self, m: int, n: int, page: int, dtype: torch.dtype, device: torch.device):
        self.m, self.n, self.page, self.dtype, self.device = m, n, page, dtype, device
        self.chunks: list[Chunk] = []
        self.free: list[tuple[int, int, int]] = []  # (chunk, first page, pages), in order, never two that touch

    @property
    def pages(self) -> int:
        return sum(c.pages for c in self.chunks)

    @property
    def left(self) -> int:
        return sum(count for _, _, count in self.free)

    @property
    def page_bytes(self) -> int:
        return self.page * (self.m + self.n) * self.dtype.itemsize

    def take(self, wanted: list[int]) -> list[tuple[int, int]]:
        """(chunk, first page) of a run of each length: side by side where one free run has room for all of them."""
        total = sum(wanted)
        if total and not any(count >= total for _, _, count in self.free) and self.left < 2 * total:
            self._grow(total)
        at = next((k for k, run in enumerate(self.free) if run[2] >= total), None)
        out: list[tuple[int, int]] = []
        for size in wanted:
            if at is None or at >= len(self.free) or self.free[at][2] < size:  # free pages, but in pieces
                at = next((k for k, run in enumerate(self.free) if run[2] >= size), None)
            if at is None:
                self._grow(total)
                at = len(self.free) - 1
            chunk, first, count = self.free[at]
            out.append((chunk, first))
            if count > size:
                self.free[at] = (chunk, first + size, count - size)
            else:
                del self.free[at]
                at = None
        return out

    def give(self, runs: list[tuple[int, int, int]]) -> None:
        """Take runs (chunk, first page, pages) back."""
        for run in runs:
            insort(self.free, run)
        joined: list[tuple[int, int, int]] = []
        for chunk, first, count in self.free:
            if joined and joined[-1][0] == chunk and sum(joined[-1][1:]) == first:
                joined[-1] = (chunk, joined[-1][1], joined[-1][2] + count)
            else:
                joined.append((chunk, first, count))
        self.free = joined

    def flat(self, chunk: int, first: int, pages: int) -> tuple[Tensor, Tensor]:
        """All numbers of a run: those of B, those of A."""
        c, k, count = self.chunks[chunk], first * self.page, pages * self.page
        return c.B[k * self.m : (k + count) * self.m], c.A[k * self.n : (k + count) * self.n]

    def view(self, chunk: int, first: int, rank: int) -> tuple[Tensor, Tensor]:
        """(B (m, r), A (r, n)) at the start of a run, both contiguous."""
        c, m, n, k = self.chunks[chunk], self.m, self.n, first * self.page
        return c.B.as_strided((m, rank), (rank, 1), k * m), c.A.as_strided((rank, n), (n, 1), k * n)

    def _grow(self, wanted: int) -> None:
        pages = max(wanted, min(self.pages, LIMIT // self.page_bytes))
        sizes = (pages * self.page * self.m, pages * self.page * self.n)
        B, A = (in_huge_pages(torch.empty(k, dtype=self.dtype, device=self.device)) for k in sizes)
        self.chunks.append(Chunk(B, A, pages))
        self.give([(len(self.chunks) - 1, 0, pages)])
