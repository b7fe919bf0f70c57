"""Orthonormal columns that stay so while they are trained (no method imports another)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ..spec import Start


def columns(U: Tensor) -> Tensor:
    """The orthonormal basis of U's columns (QR); positive on the diagonal of the triangle, so that it is continuous."""
    Q, T = torch.linalg.qr(U)
    return Q * torch.where(T.diagonal() < 0, -1.0, 1.0).to(Q.dtype)


def basis(start: Start, shape: tuple[int, ...]) -> Tensor:
    """A start: random orthonormal columns."""
    return columns(start.normal(shape, 1.0))


def room(key: str, r: int, n: int) -> None:
    """Raise the named error unless r directions fit into a hidden state of n numbers."""
    if not 1 <= r <= n:
        raise ShapeError(f"{key} needs 1 <= r <= {n}, the width of the hidden state; found r = {r}")
