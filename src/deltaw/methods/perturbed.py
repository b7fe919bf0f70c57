"""A matrix of Gaussian noise that is drawn from a key whenever it is needed, and never kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Op
from ..ops import random as rng

LARGEST = 2**22  # numbers drawn at a time


def gaussian(count: int, key: int, device: torch.device) -> Tensor:
    """float32, mean 0, variance 1, made on the device: two numbers of every 64-bit word of the key's stream (Box-Muller)."""
    words = rng.bits((count + 1) // 2, key, device)
    size = ((words >> 32 & 0xFFFFFFFF) + 1).float().mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (words & 0xFFFFFFFF).float().mul_(2.0**-31 * math.pi)
    return torch.cat([size * angle.cos(), size * angle.sin()])[:count]


class Noise(Op):
    """diag(tau) Z, Z (m, n) standard normal and the same for the same key."""

    def __init__(self, tau: Tensor, n: int, key: Tensor):
        self.tau, self.key, self.shape = tau, key, (tau.shape[0], n)

    @property
    def like(self) -> Tensor:
        return self.tau

    def pieces(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time."""
        (m, n), key = self.shape, 0 if self.key.is_meta else int(self.key)
        rows = max(1, LARGEST // n)
        for i in range(0, m, rows):
            tau = self.tau[i : i + rows]
            Z = gaussian(len(tau) * n, rng.key(key, i), tau.device).view(len(tau), n)
            yield slice(i, i + rows), (Z * tau[:, None]).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = Redrawn.apply(x, self)  # type: ignore[no-untyped-call]
        return out

    def dense(self) -> Tensor:
        if not self.tau.is_meta and not self.tau.any():
            return self.tau.new_zeros(self.shape)
        return torch.cat([N for _, N in self.pieces(self.tau.dtype)])


class Redrawn(torch.autograd.Function):
    """x -> x Nᵀ, with the gradient dL/dy N; N is drawn again for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise) -> Tensor:
        ctx.noise = noise
        return torch.cat([F.linear(x, N) for _, N in noise.pieces(x.dtype)], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return sum(dy[..., rows] @ N for rows, N in ctx.noise.pieces(dy.dtype)), None
