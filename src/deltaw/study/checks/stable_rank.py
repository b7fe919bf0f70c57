"""Stable rank: |M|_F² / |M|_2², between 1 and the rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, factors


@torch.no_grad()
def stable_rank(M: Tensor | Op, power_iters: int = 0) -> float:
    """|M|_F² / |M|_2² of a matrix, or of an operator such as a weight change; 0 for a matrix of zeros.

    power_iters = 0 takes the singular values: of an operator with exact factors those of its small core, never m x n.
    Otherwise |M|_2 is found by that many power iterations, which can only make the stable rank too large.
    Source: arXiv:2512.02807 (there of the last hidden states, as a reward). Trap: it is no count of directions: one
    large singular value hides any number of small ones.

    >>> round(stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    square, norm = _sizes(M, power_iters)
    return square / norm if norm > 0 else 0.0


def _sizes(M: Tensor | Op, power_iters: int) -> tuple[float, float]:
    if isinstance(M, Op):
        pair = factors(M)
        if pair is not None and pair[0].shape[1] < min(M.shape):
            (_, Rb), (_, Ra) = (torch.linalg.qr(t.double()) for t in (pair[0], pair[1].mT))
            M = Rb @ Ra.mT
        else:
            M = M.dense()
    M = M.detach().double().reshape(-1, M.shape[-1])
    square = float(M.square().sum())
    if power_iters < 1:
        return square, float(torch.linalg.matrix_norm(M, 2)) ** 2 if M.numel() else 0.0
    v = 1.0 + torch.linspace(0.0, 1.0, M.shape[1], dtype=M.dtype, device=M.device).sin()
    found = 0.0
    for _ in range(power_iters):
        v = v / torch.linalg.vector_norm(v).clamp_min(1e-300)
        u = M @ v
        found = max(found, float(u.square().sum()))
        v = M.mT @ u
    return square, found
