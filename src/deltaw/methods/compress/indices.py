"""Between a weight and one without some of its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class IndexMap:
    """Which rows (outputs) and columns (inputs) of an m x n weight are left; None: all of them."""

    shape: tuple[int, int]
    rows: Tensor | None = None
    columns: Tensor | None = None

    def restrict(self, W: Tensor) -> Tensor:
        """W[rows, columns]."""
        W = W if self.rows is None else W[self.rows.to(W.device)]
        return W if self.columns is None else W[:, self.columns.to(W.device)]

    def factors(self, pair: Pair) -> Pair:
        """B[rows], A[:, columns]."""
        B, A = pair
        return (B if self.rows is None else B[self.rows.to(B.device)]), (A if self.columns is None else A[:, self.columns.to(A.device)])

    def embed(self, pair: Pair, columns: Tensor | None = None) -> Pair:
        """The factors of the large weight: zeros where nothing was trained; columns: what A has where columns are new."""
        (B, A), (m, n) = pair, self.shape
        if self.rows is not None:
            B = B.new_zeros(m, B.shape[1]).index_copy(0, self.rows.to(B.device), B)
        if self.columns is not None:
            whole = A.new_zeros(len(A), n) if columns is None else columns.to(A).clone()
            A = whole.index_copy(1, self.columns.to(A.device), A)
        return B, A
