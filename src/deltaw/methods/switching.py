"""SwitchLoRA's vectors: the law they are drawn by, how one is switched, and what happens to its partner."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .update.algebra.pair import OTHER


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


def due(view: Any, every: int, decay: int) -> int:
    """How many vectors of each factor are switched in this step: r / every 0.3^((t + 1) / decay) on average, as long as there are
    spare ones and vectors that do not rest."""
    r, spare = len(view.p.A), len(view.s["pool.A"])
    c = r / every * 0.3 ** ((view.step + 1) / decay)
    count = math.floor(c + 0.5 + 0.5 * float(view.draw("count").uniform((1,), 1.0)))
    return max(min(int(count), r // 2 - int((view.s["rest.A"] > 0).sum()), spare), 0)


def switch(view: Any, c: int, rest: int) -> None:
    """The next c rows of A and columns of B against the front of their pools; their partners rest from now on."""
    if not c:
        return
    r, spare, turn = len(view.p.A), len(view.s["pool.A"]), torch.arange(c)
    taken, slot = (view.s["head"].cpu() + turn) % spare, int(view.s["slot"])
    for name, first in (("A", slot), ("B", slot + r // 2)):
        i = (first + turn) % r
        _exchange(view, name, i, taken)
        view.s[f"rest.{OTHER[name]}"][i.to(view.s["rest.A"].device)] = rest
    view.s["head"], view.s["slot"] = (view.s["head"] + c) % spare, (view.s["slot"] + c) % r


def _exchange(view: Any, name: str, i: Tensor, taken: Tensor) -> None:
    """Rows i of A, or columns i of B, against rows `taken` of their pool; W' stays the same by what is folded."""
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
