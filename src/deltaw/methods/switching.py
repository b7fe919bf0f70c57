"""SwitchLoRA's law of random vectors, and what happens to vectors whose partner was switched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bounds(m: int, n: int, r: int, s: float) -> tuple[float, float]:
    """Of rows of A and columns of B: sqrt 3 times (sqrt(m) r / n^1.5)^¼ sqrt(g) and (r / sqrt(m n))^¼ sqrt(g), g = 1 / sqrt 3,
    for s = 1 / r; for another s so that s B A stays as large, which is as large as a Kaiming start of W."""
    g = 3.0**-0.5 / (r * s)
    return (3.0 * g * (m**0.5 * r / n**1.5) ** 0.5) ** 0.5, (3.0 * g * (r / (m * n) ** 0.5) ** 0.5) ** 0.5


def hold(view: Any, name: str, axis: int, stale: Tensor, resting: Tensor) -> None:
    """Before a step: the `stale` rows (axis 0) or columns (axis 1) of a tensor lose their optimiser state, the `resting`
    ones have no gradient in it. Both are one truth value for each."""
    t = getattr(view.p, name)
    grad = t.grad
    if stale.any():
        entries = torch.arange(t.numel(), device=t.device).view_as(t)
        view.set(name, t.detach(), entries.index_fill(axis, stale.nonzero().flatten().to(t.device), -1))
        t.grad = grad  # it is as true as before
    if grad is not None:
        grad.index_fill_(axis, resting.nonzero().flatten().to(t.device), 0.0)
