"""Rows of a matrix in groups; a bias as one more column."""

from __future__ import annotations

import torch
from torch import Tensor


def beside(W: Tensor, bias: Tensor | None) -> Tensor:
    """[W | bias], (m, n + 1), or W."""
    return W if bias is None else torch.cat([W, bias.detach().to(W)[:, None]], 1)


def grouped_rows(X: Tensor, first: Tensor, rounds: int = 10) -> Tensor:
    """k-means: the number of the group of every row, after some rounds from the rows `first` as centres. A group that
    has lost all its rows keeps its centre."""
    centres = X[first.to(X.device)]
    for _ in range(rounds):
        group = torch.cdist(X, centres).argmin(1)
        count = torch.bincount(group, minlength=len(first)).to(X.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add(0, group, X)
        centres = torch.where(count > 0, sums / count.clamp_min(1), centres)
    return torch.cdist(X, centres).argmin(1)


def main_directions(X: Tensor, group: Tensor, K: int, r: int) -> Tensor:
    """(K, r, d): the first r right singular vectors of the rows of every group, completed to an orthonormal set."""
    return torch.stack([torch.linalg.svd(X[group == k], full_matrices=True).Vh[:r] for k in range(K)])


def principal(W: Tensor, r: int) -> Tensor:
    """The first r right singular vectors, as rows."""
    V: Tensor = torch.linalg.svd(W, full_matrices=False).Vh
    return V[:r]
