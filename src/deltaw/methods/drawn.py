"""Mixtures of random numbers that are never stored, and random orders that are balanced: both from seeds, as needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import random as rng


class Mixture(torch.autograd.Function):
    """sum_i c_i A_i, A_i (size,) with entries U(±1) / sqrt(k) from its own seed; backward draws again what it needs."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, seed: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(c, seed)
        return sum(torch.mv(A.mT, c[i : i + len(A)]) for i, A in bases(c, seed, size))  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        return torch.cat([torch.mv(A, g) for _, A in bases(*ctx.saved_tensors, len(g))]), None, None


def bases(c: Tensor, seed: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first, some of them), about a million entries at a time: the same bits on every device."""
    k, few = len(c), max(2**20 // size, 1)
    seeds = rng.bits(k, seed, c.device)  # type: ignore[arg-type]
    for i in range(0, k, few):
        words = rng.bits(size, seeds[i : i + few, None], c.device)  # type: ignore[arg-type]
        yield i, (words >> 11).to(c.dtype) * (2.0**-52 / k**0.5)


def mixture(c: Tensor, seed: Tensor, *shape: int) -> Tensor:
    """sum_i c_i A_i with A_i of this shape."""
    size = 1
    for side in shape:
        size *= side
    mixed: Tensor = Mixture.apply(c, seed, size)  # type: ignore[no-untyped-call]
    return mixed.view(shape)


def runs(first: int, count: int, total: int, d: int, seed: int) -> Tensor:
    """Entries `first` and following of an endless sequence in which every run of d has each of 0..d-1 once, shuffled."""
    k, end = first // d, -(-(first + count) // d)
    words = rng.bits(d, rng.bits(-(-total // d), rng.key("runs", seed))[k:end, None])  # type: ignore[arg-type]
    return words.argsort(-1).flatten()[first - k * d : first - k * d + count]
