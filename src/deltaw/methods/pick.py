"""Picking entries of a vector as an operator: columns of a weight, rows of a table."""

from __future__ import annotations

from torch import Tensor

from ..ops import Op


class Pick(Op):
    """Rows i (k,) of the n x n identity: the entries i of x."""

    constant = True
    like = property(lambda self: self.kept)
    columns = property(lambda self: self.i)  # so that a fused path may change columns i of W instead

    def __init__(self, i: Tensor, n: int, like: Tensor):
        self.i, self.kept, self.shape = i, like, (i.shape[0], n)

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., self.i]

    def rmv(self, y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape[:-1], self.shape[1]).index_copy(-1, self.i, y)

    @property
    def T(self) -> Op:
        return Place(self)

    def back(self, x: Tensor, g: Tensor) -> None:
        """x += opᵀ g in place, where only the picked columns change: what a fused backward asks for."""
        x.index_add_(-1, self.i, g)

    def dense(self) -> Tensor:
        return self.kept.new_zeros(self.shape).scatter(1, self.i[:, None], 1.0)

    def cols(self, ids: Tensor) -> Tensor:
        return (ids.unsqueeze(-1) == self.i).to(self.kept.dtype)


class Place(Op):
    """The transpose of a Pick: its entries of a vector, put where they were picked from."""

    constant = True
    like = property(lambda self: self.pick.kept)

    def __init__(self, pick: Pick):
        self.pick, self.shape = pick, pick.shape[::-1]

    def __call__(self, x: Tensor) -> Tensor:
        return self.pick.rmv(x)

    def rmv(self, y: Tensor) -> Tensor:
        return self.pick(y)

    def dense(self) -> Tensor:
        return self.pick.dense().mT

    @property
    def T(self) -> Op:
        return self.pick
