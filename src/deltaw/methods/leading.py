"""Leading singular triplets of a matrix that is too large for a full decomposition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SMALL = 256  # LAPACK takes about 20 ms for it


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
        Q = torch.linalg.qr(M @ draw((M.shape[1], width)).to(M)).Q
        for _ in range(power):
            Q = torch.linalg.qr(M @ torch.linalg.qr(M.mT @ Q).Q).Q
        U, S, V = torch.linalg.svd(Q.mT @ M, full_matrices=False)
        U = Q @ U
    U, S, V = U[:, :k], S[:k], V[:k]
    sign = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(U)
    return U * sign, S, V * sign.mT
