"""Principal components of rows that come in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lowrank import signs
from ..ops import random as rng
from .leading import leading


class IncrementalPCA:
    """The k leading components of all rows so far, without keeping the rows (Ross, Lim, Lin, Yang 2008).

    A part X of c rows becomes one small problem: the SVD of [diag(S) V; X - mean(X); sqrt(a c / (a + c)) (mean - mean(X))],
    a the rows before. Exact as long as what is cut off at k is nothing. State: components (k, n), singular (k), mean (n).
    `converged[i]`: the i-th component's cosine with its earlier self was at least tau in the last part.
    Rows are held back until there are k of them, because fewer have no k components.
    """

    def __init__(self, k: int, tau: float = 0.99):
        self.k, self.tau, self.seen, self.scatter = k, tau, 0, 0.0
        self.components: Tensor | None = None
        self.singular = self.mean = torch.empty(0)
        self.converged = torch.zeros(k, dtype=torch.bool)
        self.waiting: list[Tensor] = []

    def add(self, X: Tensor) -> None:
        if self.seen == 0:
            self.waiting.append(X)
            if sum(map(len, self.waiting)) < self.k:
                return
        self.flush() if self.waiting else self._add(X)

    def flush(self) -> None:
        """Take in rows that are held back, even if there are fewer than k."""
        X = torch.cat(self.waiting) if self.waiting else torch.empty(0)
        self.waiting = []
        if len(X):
            self._add(X)

    def _add(self, X: Tensor) -> None:
        a, c, here, old = self.seen, len(X), X.mean(0), self.components
        if c == 0:
            return
        X, weight = X - here, a * c / (a + c)
        if old is not None:
            apart = self.mean - here
            self.scatter += weight * float(apart.square().sum())
            self.mean = self.mean + (here - self.mean) * (c / (a + c))
            X = torch.cat([self.singular[:, None] * old, X, weight**0.5 * apart[None]])
            self.scatter += float(X[len(old) : -1].square().sum())
        else:
            self.mean = here
            self.scatter = float(X.square().sum())
        self.seen += c
        _, S, V = leading(X, min(self.k, *X.shape), lambda shape: rng.normal(shape, rng.key("pca", self.seen)))
        self.components, self.singular = signs(V.mT)[:, None] * V, S
        if old is not None:
            both = min(len(old), len(V))
            near = torch.nn.functional.cosine_similarity(self.components[:both], old[:both]) >= self.tau
            self.converged = torch.nn.functional.pad(near.cpu(), (0, self.k - both))

    @property
    def share(self) -> Tensor:
        """The share of the rows' variance along every component."""
        return self.singular.square() / max(self.scatter, 1e-30)
