"""Leading singular triplets of a matrix that is too large for a full decomposition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lowrank import signs

SMALL = 256  # LAPACK takes 15 ms for 256 x 256 and 0.3 s for 256 x 4096, on one core


def leading(
    M: Tensor, k: int, draw: Callable[[tuple[int, ...]], Tensor], power: int = 4, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vᵀ) cut at k, by subspace iteration on `width` columns (2 k by default); the entry of largest size in every
    column of U is positive.

    draw(shape) gives the Gaussian sketch. LAPACK where the matrix is small, or the sketch would be half of it. The error of
    the i-th vector falls as (sigma_width / sigma_i)^(2 power + 1) (Halko, Martinsson, Tropp 2011): a flat spectrum needs more.
    """
    width = min(2 * k if width is None else max(width, k), *M.shape)
    if 2 * width >= min(M.shape) or min(M.shape) <= SMALL:
        U, S, V = torch.linalg.svd(M, full_matrices=False)
    else:
        U, S, V = iterated(M, draw((M.shape[1], width)).to(M), power)
    U, S, V = U[:, :k], S[:k], V[:k]
    sign = signs(U)
    return U * sign, S, sign[:, None] * V


def iterated(M: Tensor, sketch: Tensor, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vᵀ) of M projected on what `power` rounds of subspace iteration make of M times the sketch, by QR after each product."""
    Q = torch.linalg.qr(M @ sketch).Q
    for _ in range(power):
        Q = torch.linalg.qr(M @ torch.linalg.qr(M.mT @ Q).Q).Q
    U, S, V = torch.linalg.svd(Q.mT @ M, full_matrices=False)
    return Q @ U, S, V
