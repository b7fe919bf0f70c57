"""Entries of a weight: as an operator, how they are chosen, and how another choice takes over in the middle of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import Dense, Op


class Sparse(Op):
    """Values v (K,) at different flat positions i (K,) of an m x n zero matrix."""

    like, entries = property(lambda self: self.v), property(lambda self: (self.i, self.v))

    def __init__(self, i: Tensor, v: Tensor, shape: tuple[int, int]):
        self.i, self.v, self.shape = i, v, shape

    def __call__(self, x: Tensor) -> Tensor:
        m, n = self.shape
        if 4 * len(self.i) * (x.numel() // n) > m * n:  # many tokens: gathering is slower there, and larger
            return Dense(self.dense())(x)
        y = x[..., self.i % n] * self.v
        return y.new_zeros(*x.shape[:-1], m).index_add(-1, self.i // n, y).to(x.dtype)

    def dense(self) -> Tensor:
        return self.v.new_zeros(self.shape).flatten().index_copy(0, self.i, self.v).view(self.shape)


def top(score: Tensor, k: int, largest: bool = True) -> Tensor:
    """The flat positions of the k largest (smallest) scores in rising order; among equals the first ones."""
    s = score.flatten() if largest else -score.flatten()
    edge = s.topk(k).values[-1]
    chosen = s > edge
    rest = (s == edge).nonzero().flatten()[: k - int(chosen.sum())]
    chosen[rest] = True
    return chosen.nonzero().flatten()


def stripes(m: int, n: int, k: int, first: int = 0) -> Tensor:
    """k positions: the main diagonal and rows from the row `first` on, evenly apart; the last row as far as k goes."""
    score = torch.zeros(m, n)
    score.diagonal().fill_(m + 1.0)
    count = min(m, -(-max(k - min(m, n), 0) // max(n - 1, 1)))  # a row adds n - 1 where it crosses the diagonal
    rows = (first + torch.arange(count) * m // max(count, 1)) % m
    score[rows] = torch.maximum(score[rows], torch.arange(count, 0, -1.0)[:, None])
    return top(score, k)


def low_rank(w: Tensor, rank: int) -> Tensor:
    """The closest matrix of that rank."""
    U, S, V = torch.linalg.svd(w, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def with_past(W: Op, delta: Op, i: Tensor, v: Tensor) -> Op:
    """W + delta + what earlier choices of entries left behind (see `rechoose`)."""
    return W + delta + Sparse(i, v, W.shape) if len(i) else W + delta


def rechoose(view: Any, old: Tensor, new: Tensor, shape: torch.Size, fresh: bool = False, **where: Tensor) -> None:
    """Train the flat positions `new` instead of `old`: W' stays what it is, and entries in both keep their optimiser state
    (fresh: none does). v takes `shape`; what leaves goes to the frozen past (I0, v0); `where` are tensors that say where.
    """
    p, (m, n) = view.p, view.site.shape
    total = torch.zeros(m * n, dtype=p.v.dtype, device=p.v.device)
    total[p.I0], total[old] = p.v0, p.v.detach().flatten()
    source = torch.full((m * n,), -1, device=p.v.device)
    if not fresh:
        source[old] = torch.arange(len(old), device=p.v.device)
    value = total[new]
    total[new] = 0.0
    past = total.nonzero().flatten()
    view.set("v", value.view(shape), source=source[new].view(shape))
    view.set("I0", past)
    view.set("v0", total[past])
    for name, t in where.items():
        view.set(name, t)
