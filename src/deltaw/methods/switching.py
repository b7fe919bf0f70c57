"""SwitchLoRA's vectors: the law they are drawn by, how one is switched, and what happens to its partner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bounds(m: int, n: int, r: int, s: float) -> tuple[float, float]:
    """Of rows of A and columns of B: sqrt 3 times (sqrt(m) r / n^1.5)^¼ sqrt(g) and (r / sqrt(m n))^¼ sqrt(g), g = 1 / sqrt 3,
    for s = 1 / r; for another s so that s B A stays as large, which is as large as a Kaiming start of W."""
    g = 3.0**-0.5 / (r * s)
    return (3.0 * g * (m**0.5 * r / n**1.5) ** 0.5) ** 0.5, (3.0 * g * (r / (m * n) ** 0.5) ** 0.5) ** 0.5


def pools(view: Any) -> dict[str, Tensor]:
    """The vectors that are not in use at first: min(m, n) - r rows of A and as many columns of B."""
    B, A, s = view.factors()
    (m, r), n = B.shape, A.shape[1]
    spare, (a, b) = max(min(m, n) - r, 0), bounds(m, n, r, s)
    drawn = {
        name: view.draw(name).uniform((spare, size), bound)
        for name, size, bound in (("pool.A", n, a), ("pool.B", m, b))
    }
    return {name: t.to(A.dtype) for name, t in drawn.items()}


def switch(view: Any, name: str, i: Tensor, taken: Tensor) -> None:
    """Rows i of A, or columns i of B, against rows `taken` of their pool; s B A stays the same by what is folded."""
    B, A, s = view.factors()
    t, partner = (A, B) if name == "A" else (B.mT, A.mT)
    pool, i = view.s[f"pool.{name}"], i.to(t.device)
    old, new = t[i].clone(), pool[taken.to(pool.device)].to(t)
    pair = (s * partner[:, i], old - new)
    view.fold(*(pair if name == "A" else (pair[1].mT, pair[0].mT)))
    t[i], pool[taken.to(pool.device)] = new, old.to(pool)


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
