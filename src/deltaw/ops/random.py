"""Random numbers from a counter, in integer tensor operations: the same bits eager, compiled, on any device.

Element i of a stream is two rounds of the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014) over key + i·golden.
Streams are keyed by text, so an adapter's start depends on (seed, site, tensor) and on nothing else: not on the order
in which modules are visited, nor on the global generator. `VERSION` is stored in files that regenerate tensors.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

VERSION = 1
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_M1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_M2 = -7723592293110705685  # 0x94D049BB133111EB


def key(*words: object) -> int:
    """A stable 63-bit key from text."""
    text = "\x1f".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _shift(z: Tensor, k: int) -> Tensor:
    return (z >> k) & ((1 << (64 - k)) - 1)  # logical shift of a signed integer


def bits(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` 64-bit words (int64)."""
    z = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _GOLDEN + seed
    for _ in range(2):
        z = (z ^ _shift(z, 30)) * _M1
        z = (z ^ _shift(z, 27)) * _M2
        z = z ^ _shift(z, 31)
    return z


def uniform(shape: tuple[int, ...], seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """float64 in [low, high)."""
    u = _shift(bits(math.prod(shape), seed), 11).to(torch.float64) * 2.0**-53
    return (low + (high - low) * u).reshape(shape)


def normal(shape: tuple[int, ...], seed: int, std: float = 1.0) -> Tensor:
    """float64, mean 0 (Box-Muller on two streams)."""
    u = 1.0 - uniform(shape, seed)  # (0, 1]: the logarithm stays finite
    v = uniform(shape, seed ^ 0x5DEECE66D)
    return std * torch.sqrt(-2.0 * torch.log(u)) * torch.cos(2.0 * math.pi * v)


def choose(count: int, total: int, seed: int) -> Tensor:
    """`count` different integers below `total`, sorted (int64)."""
    # the smallest words win; they all differ (the finaliser is a bijection), so no tie has to be broken
    return torch.sort(torch.topk(bits(total, seed), count, largest=False, sorted=False).indices).values
