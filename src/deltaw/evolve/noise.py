"""Seeded probes: member i of an epoch is a word and three numbers, on any machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import SpecError
from ..ops import random as rng


def normals(keys: list[int], count: int) -> Tensor:
    """float64 (keys, count): row k is `ops.random.normal((count,), keys[k])`, all rows in one go."""
    k = torch.tensor(keys, dtype=torch.int64)[:, None]

    def unit(key: Tensor) -> Tensor:
        word = rng.bits(count, cast(Any, key))  # one stream a row
        return ((word >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53

    u, v = 1.0 - unit(k), unit(k ^ 0x5DEECE66D)
    return torch.sqrt(-2.0 * torch.log(u)) * torch.cos(2.0 * math.pi * v)


@dataclass(frozen=True)
class Noise:
    """What members 2j and 2j + 1 share: E_j = A_j B_jᵀ / sqrt r for a matrix (m, n), A_j (m, r), B_j (n, r) standard normal; for any
    other tensor E_j is standard normal itself. Member 2j has +sigma E_j added, 2j + 1 has -sigma E_j.

    The stream is keyed by (seed, tensor's name, epoch // reuse, j), computed in float64 on the CPU: the same on every device, in
    every process and for every size of the population. reuse: epochs that share their probes; 0: all of them do.
    """

    seed: int = 0
    sigma: float = 1e-3
    rank: int = 1
    reuse: int = 1

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.rank < 1 or self.reuse < 0:
            raise SpecError(
                f"sigma > 0, rank >= 1 and reuse >= 0 were expected; found {self.sigma}, {self.rank}, {self.reuse}"
            )

    def _rows(self, name: str, epoch: int, pairs: range, count: int) -> Tensor:
        epoch = epoch // self.reuse if self.reuse else 0
        return normals([rng.key("eggroll", self.seed, name, epoch, j) for j in pairs], count)

    def factors(self, name: str, shape: tuple[int, int], epoch: int, pairs: range) -> tuple[Tensor, Tensor]:
        """A (pairs, m, r) and B (pairs, n, r), the root of the rank folded into A; float32."""
        m, n = shape
        z = self._rows(name, epoch, pairs, (m + n) * self.rank).to(torch.float32).reshape(len(pairs), m + n, self.rank)
        return z[:, :m] / self.rank**0.5, z[:, m:]

    def dense(self, name: str, shape: tuple[int, ...], epoch: int, pairs: range) -> Tensor:
        """(pairs, *shape), float32."""
        return self._rows(name, epoch, pairs, math.prod(shape)).to(torch.float32).reshape(len(pairs), *shape)


def signed(t: Tensor) -> Tensor:
    """(pairs, ...) -> (members, ...): each twice, with + and -."""
    return torch.stack([t, -t], 1).flatten(0, 1)
