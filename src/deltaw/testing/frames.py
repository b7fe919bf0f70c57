"""What several oracles compute in the plain way, apart from the library."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_schmidt(U: Tensor) -> Tensor:
    """The columns of U made orthonormal, one after the other."""
    basis: list[Tensor] = []
    for u in U.unbind(1):
        for q in basis:
            u = u - (q @ u) * q
        basis.append(u / u.pow(2).sum().sqrt())
    return torch.stack(basis, 1)
