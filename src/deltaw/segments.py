"""Rows of a batch grouped by adapter: tokens are permuted, weights never gathered per token.

Groups (the rows of one adapter) are laid out one behind the other; consecutive groups of about the same size form a
bucket, padded to its largest group, and a bucket is one batched product. How many buckets there are is a cost rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PASS = 8  # multiply-adds in the time of moving one entry of a matrix once

Stack = tuple[Tensor, Tensor]  # (g, m, r), (g, r, n): the factors of g adapters


def call(dtype: torch.dtype) -> int:
    """Multiply-adds in the time that one more small product costs by being one more: in half precision the multiply-adds
    are cheaper, the calls are not."""
    return 2_000_000 if dtype.itemsize == 2 else 200_000


def ranges(sizes: Sequence[int], unit: int, overhead: int) -> list[tuple[int, int]]:
    """Cut descending sizes into consecutive ranges so that the sum of overhead + unit · length · largest is least."""
    ends = [k for k in range(1, len(sizes)) if sizes[k] != sizes[k - 1]] + ([len(sizes)] if sizes else [])
    starts = [0, *ends[:-1]]
    best: list[tuple[int, int]] = [(0, 0)]  # the least cost of what is in front of each start, and where its range begins
    for j, end in enumerate(ends):
        cost, i = min((best[i][0] + overhead + unit * (end - starts[i]) * sizes[starts[i]], i) for i in range(j + 1))
        best.append((cost, i))
    out: list[tuple[int, int]] = []
    j = len(ends)
    while j > 0:
        i = best[j][1]
        out.append((starts[i], ends[j - 1]))
        j = i
    return out[::-1]


@dataclass(frozen=True)
class Bucket:
    """`count` groups of `size` rows each: adapters first … of one stack, rows at … of the sorted ones."""

    stack: int
    first: int
    count: int
    size: int
    at: int


class Sorted:
    """Where the rows go. groups[i][j]: the rows of adapter j of stack i, longest groups first; units[i]: multiply-adds
    per row; overhead: of one more bucket. take: the sorted rows by their number in the batch, padding included; back: the place of each row among
    them, one past the end for rows without an adapter (`partial`). straight: the batch is sorted as it is."""

    def __init__(self, groups: list[list[list[int]]], rows: int, units: list[int], overhead: int):
        self.buckets: list[Bucket] = []
        take: list[int] = []
        place: dict[int, int] = {}
        for i, stack in enumerate(groups):
            for lo, hi in ranges([len(g) for g in stack], units[i], overhead):
                size = len(stack[lo])
                self.buckets.append(Bucket(i, lo, hi - lo, size, len(take)))
                for group in stack[lo:hi]:
                    for j in range(size):
                        if j < len(group):
                            place[group[j]] = len(take)
                        take.append(group[min(j, len(group) - 1)])  # padding reads any row, and nobody reads it
        self.rows, self.total = rows, len(take)
        self.partial = len(place) < rows
        self.straight = take == list(range(rows))
        self.padding = self.total - len(place)
        self.take = torch.tensor(take, dtype=torch.int64)
        self.back = torch.tensor([place.get(i, self.total) for i in range(rows)], dtype=torch.int64)

    def to(self, device: torch.device) -> Sorted:
        self.take, self.back = self.take.to(device), self.back.to(device)
        return self

    def products(self, x: Tensor, stacks: Sequence[Stack], lookup: bool = False) -> Tensor:
        """B A x of every row by its own adapter: x (rows, k, n) -> (rows, k, m), or, with lookup, ids (rows, k);
        differentiable in x and the stacks. Rows without an adapter get 0."""
        rest = x.shape[1:]
        moved = x if self.straight else x.index_select(0, self.take)
        parts: list[Tensor] = []
        for b in self.buckets:
            B, A = stacks[b.stack]
            B, A = B[b.first : b.first + b.count], A[b.first : b.first + b.count]
            own = moved[b.at : b.at + b.count * b.size]
            if lookup:
                ids = own.reshape(b.count, 1, -1).expand(-1, A.shape[1], -1)
                z = A.gather(2, ids).mT
            else:
                z = torch.bmm(own.reshape(b.count, b.size * rest[0], rest[1]), A.mT.to(x.dtype))
            d = torch.bmm(z, B.mT.to(z.dtype))
            parts.append(d.reshape(b.count * b.size, rest[0], B.shape[1]))
        if self.partial:
            parts.append(parts[0].new_zeros(1, rest[0], parts[0].shape[2]))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out if self.straight else out.index_select(0, self.back)
