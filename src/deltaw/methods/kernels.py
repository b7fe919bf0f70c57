"""Matrices of distances between points, and the largest entries of a matrix (no method imports another)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SpecError
from ..spec import Declared, Param, uniform


def points(m: int, n: int, q: int) -> Declared:
    """P (2, n, q/2) for the inputs, Q (2, m, q/2) for the outputs, started as torch starts tensors of these shapes."""
    if q < 2 or q % 2:
        raise SpecError(f"points in two spaces of q/2 dimensions need an even q of at least 2; found q = {q}")
    h = q // 2
    return {k: Param((2, size, h), uniform((size * h) ** -0.5)) for k, size in (("P", n), ("Q", m))}


def contrast(Q: Tensor, P: Tensor) -> Tensor:
    """K (m, n), K_ij = |Q1_i - P1_j| - |Q2_i - P2_j|, from differences: products would lose the digits of small ones."""
    near, far = torch.cdist(Q, P, compute_mode="donot_use_mm_for_euclid_dist")
    return near - far


def survivors(K: Tensor, dropped: int | Tensor) -> Tensor:
    """|K|, but 0 at the `dropped` smallest; no gradient passes through it. A number in a tensor costs a sort."""
    size = K.detach().abs()
    if isinstance(dropped, Tensor):
        edge = size.flatten().sort().values.gather(0, (dropped - 1).clamp(min=0).view(1))
        return size * ((size > edge) | (dropped == 0))
    return size * (size > size.flatten().kthvalue(dropped).values) if dropped else size
