"""Outputs of the base edited inside a small subspace: what methods of removal and injection share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ShapeError
from ..ops import Op, as_op, chain, cost, delta

Kind = Literal["relu", "qr"]


def pair(P: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """(Q, K) of P (m, r): what is written with and what is read with; "relu": P and relu(P), "qr": P's orthonormal factor
    twice."""
    if kind == "relu":
        return P, torch.relu(P)
    Q = torch.linalg.qr(P).Q
    return Q, Q


def fits(key: str, r: int, m: int) -> None:
    if not 1 <= r <= m:
        raise ShapeError(f"{key} edits a subspace of 1 <= r <= {m} of the outputs; found r = {r}")


class Edited(Op):
    """W + Q (R - Kᵀ W), or W - Q Kᵀ W without R: applied with one product of W, as z + Q (R x - Kᵀ z), z = W x."""

    like = property(lambda self: self.Q.like)

    def __init__(self, W: Op, Q: Tensor, K: Tensor, R: Tensor | None = None):
        self.W, self.Q, self.K, self.shape = W, as_op(Q), as_op(K), W.shape
        self.R = None if R is None else as_op(R)

    def _written(self, z: Tensor, h: Tensor | None) -> Tensor:
        read = self.K.rmv(z)
        return z + self.Q(-read if h is None else h - read)

    def __call__(self, x: Tensor) -> Tensor:
        return self._written(self.W(x), None if self.R is None else self.R(x))

    def cols(self, i: Tensor) -> Tensor:
        return self._written(self.W.cols(i), None if self.R is None else self.R.cols(i))

    def rmv(self, y: Tensor) -> Tensor:
        g = self.Q.rmv(y)
        x = self.W.rmv(y - self.K(g))
        return x if self.R is None else x + self.R.rmv(g)

    def dense(self) -> Tensor:
        w = self.W.dense()
        w = w.to(torch.promote_types(w.dtype, self.like.dtype))
        return self._written(w.mT, None if self.R is None else self.R.dense().mT).mT


@delta.on(Edited)
def _(op: Edited, W: Op) -> Op:
    if op.W is not W:
        return op + (-1.0) * W
    read = chain((-1.0) * op.K.T, W)
    return chain(op.Q, read if op.R is None else op.R + read)


@cost.on(Edited)
def _(op: Edited, tokens: int) -> int:
    return cost(op.W, tokens) + 2 * cost(op.Q, tokens) + (0 if op.R is None else cost(op.R, tokens))
