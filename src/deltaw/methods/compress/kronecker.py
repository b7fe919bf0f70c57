"""Kronecker factors of a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..factors import divides


def kronecker_svd(M: Tensor, m1: int, n1: int, terms: int = 1) -> list[tuple[Tensor, Tensor]]:
    """The pairs C (m1, n1), D (m / m1, n / n1) whose sum of C ⊗ D is nearest to M (m, n), largest first; LoKr takes one.

    Every block of M, read as a row, gives a matrix of m1 n1 rows; its leading singular triples are the terms, the root of
    the value on both sides. What is left is the tail of that spectrum: no pairs come closer. Source: Van Loan 2000.
    """
    m, n = M.shape
    divides("m1", m1, m=m)
    divides("n1", n1, n=n)
    blocks = M.unflatten(0, (m1, m // m1)).unflatten(2, (n1, n // n1)).movedim(2, 1).reshape(m1 * n1, -1)
    U, S, V = torch.linalg.svd(blocks.to(torch.promote_types(M.dtype, torch.float32)), full_matrices=False)
    root = S.sqrt()
    return [
        ((U[:, k] * root[k]).reshape(m1, n1), (V[k] * root[k]).reshape(m // m1, n // n1)) for k in range(min(terms, len(S)))
    ]
