"""Leaves: operators that hold one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .core import Op


class Dense(Op):
    """A matrix c · w, w (m, n). The number c is multiplied in when the matrix is used, so that no scaled copy is kept."""

    def __init__(self, w: Tensor, c: float = 1.0):
        if w.dim() != 2:
            raise ShapeError(f"a matrix was expected, a tensor of shape {tuple(w.shape)} was found")
        self.raw, self.c, self.shape = w, c, (w.shape[0], w.shape[1])

    @property
    def like(self) -> Tensor:
        return self.raw

    @property
    def w(self) -> Tensor:
        return self.raw if self.c == 1.0 else self.raw * self.c

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w.to(x.dtype))

    def rmv(self, y: Tensor) -> Tensor:
        return F.linear(y, self.w.mT.to(y.dtype))

    def dense(self) -> Tensor:
        return self.w

    def cols(self, i: Tensor) -> Tensor:
        return F.embedding(i, self.w.mT)


class Diag(Op):
    """diag(v), v (n,)."""

    def __init__(self, v: Tensor):
        if v.dim() != 1:
            raise ShapeError(f"a vector was expected, a tensor of shape {tuple(v.shape)} was found")
        self.v, self.shape = v, (v.shape[0], v.shape[0])

    @property
    def like(self) -> Tensor:
        return self.v

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.v.to(x.dtype)

    def rmv(self, y: Tensor) -> Tensor:
        return self(y)

    def dense(self) -> Tensor:
        return torch.diag(self.v)


class Eye(Op):
    """c · I of size n; c a number or a 0-dim tensor. The base of a hidden-state stream, and the carrier of a scale."""

    def __init__(self, n: int, like: Tensor, c: float | Tensor = 1.0):
        self.n, self.c, self._like, self.shape = n, c, like, (n, n)

    @property
    def like(self) -> Tensor:
        return self._like

    @property
    def plain(self) -> bool:
        return isinstance(self.c, float) and self.c == 1.0

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.c, float):
            return x if self.c == 1.0 else x * self.c
        return x * self.c.to(x.dtype)

    def rmv(self, y: Tensor) -> Tensor:
        return self(y)

    def dense(self) -> Tensor:
        return torch.eye(self.n, dtype=self._like.dtype, device=self._like.device) * self.c


class Zero(Op):
    """The zero map (m, n)."""

    def __init__(self, m: int, n: int, like: Tensor):
        self.shape, self._like = (m, n), like

    @property
    def like(self) -> Tensor:
        return self._like

    def __call__(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.shape[0])

    def rmv(self, y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape[:-1], self.shape[1])

    def dense(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self._like.dtype, device=self._like.device)

    def cols(self, i: Tensor) -> Tensor:
        return torch.zeros(*i.shape, self.shape[0], dtype=self._like.dtype, device=self._like.device)


class BlockDiag(Op):
    """k blocks (k, a, b) on the diagonal: shape (k·a, k·b), applied as one batched product."""

    def __init__(self, t: Tensor):
        if t.dim() != 3:
            raise ShapeError(f"blocks (k, a, b) were expected, a tensor of shape {tuple(t.shape)} was found")
        self.t, self.shape = t, (t.shape[0] * t.shape[1], t.shape[0] * t.shape[2])

    @property
    def like(self) -> Tensor:
        return self.t

    def __call__(self, x: Tensor) -> Tensor:
        k, _, b = self.t.shape
        y = torch.einsum("kab,...kb->...ka", self.t.to(x.dtype), x.reshape(*x.shape[:-1], k, b))
        return y.flatten(-2)

    def rmv(self, y: Tensor) -> Tensor:
        return BlockDiag(self.t.mT)(y)

    def dense(self) -> Tensor:
        k, a, b = self.t.shape
        eye = torch.eye(k, dtype=self.t.dtype, device=self.t.device)
        return torch.einsum("kab,kl->kalb", self.t, eye).reshape(k * a, k * b)
