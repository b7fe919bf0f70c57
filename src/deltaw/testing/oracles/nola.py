"""NOLA: the closed form, with every basis written out (PEFT 0.21 does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.nola import NOLA

METHOD = NOLA(r=3, k=40, alpha=2.0)
MASK = 2**64 - 1


def finalised(z: int) -> int:
    """Two rounds of SplitMix64's finaliser, in Python's integers."""
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z


def stream(seed: int, i: int) -> int:
    return finalised((seed + (i + 1) * 0x9E3779B97F4A7C15) & MASK)


def basis(seed: int, i: int, shape: tuple[int, int]) -> Tensor:
    own = stream(seed, i)
    words = [stream(own, e) for e in range(shape[0] * shape[1])]
    signed = [(w - 2**64 if w >= 2**63 else w) >> 11 for w in words]
    return torch.tensor([s / 2**52 for s in signed], dtype=torch.float64).reshape(shape)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    (m, n), r, k = W.shape, method.r, method.k
    A, B = p["A0"], torch.zeros(m, r, dtype=W.dtype)
    for i in range(k):
        A = A + p["alpha"][i] * basis(int(p["z"][0]), i, (r, n)) / k**0.5
        B = B + p["beta"][i] * basis(int(p["z"][1]), i, (m, r)) / k**0.5
    y = x @ (W + method.alpha / r * B @ A).mT
    return y if b is None else y + b
