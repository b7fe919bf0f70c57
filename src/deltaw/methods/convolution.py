"""The two matrices of a convolution's kernel."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import SpecError


def spatial(W: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """A kernel's matrix (N, C kh kw) as (C kh, N kw): its low-rank form is two convolutions, of a column and of a row. () changes nothing."""
    if kernel and (len(kernel) != 2 or W.shape[1] % math.prod(kernel)):
        raise SpecError(f"a kernel (kh, kw) whose places divide the {W.shape[1]} inputs of a row was expected; found {kernel}")
    if not kernel:
        return W
    return W.unflatten(1, (-1, *kernel)).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def channels(M: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The inverse of `spatial`."""
    return M.unflatten(1, (-1, kernel[1])).unflatten(0, (-1, kernel[0])).permute(2, 0, 1, 3).flatten(1) if kernel else M
