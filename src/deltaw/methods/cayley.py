"""Rotations from skew-symmetric matrices, several at once (k, b, b), each given without its identity: R - I.

Without it a small rotation keeps its digits when it is cast to half precision, and Q = 0 gives exactly nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(q: Tensor, b: int) -> Tensor:
    """(k, b, b) with q (k, b (b - 1) / 2), row by row, above the diagonal and its negative below."""
    i, j = torch.triu_indices(b, b, 1, device=q.device)
    upper = q.new_zeros(q.shape[0], b * b).index_copy(1, i * b + j, q).view(-1, b, b)
    return upper - upper.mT


def cayley(Q: Tensor) -> Tensor:
    """(I - Q)(I + Q)⁻¹ - I = -2 Q (I + Q)⁻¹: orthogonal for every skew Q, without the eigenvalue -1."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye + Q, -2.0 * Q, left=False)


def neumann(Q: Tensor, terms: int) -> Tensor:
    """2 Q + 2 Q² + … + 2 Q^(terms-2) + Q^(terms-1), about (I + Q)(I - Q)⁻¹ - I: the transpose of `cayley`'s rotation,
    orthogonal up to terms of order |Q|^(terms-1). By Horner's rule; terms >= 4."""
    two = 2.0 * torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    X = two + Q
    for _ in range(terms - 3):
        X = torch.baddbmm(two, Q, X)
    return Q @ X
