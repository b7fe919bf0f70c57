"""What a weight change looks like: spectra, ranks, directions. Of operators or factors; no m x n matrix where factors are there."""

from __future__ import annotations

import torch
from torch import Tensor

from .convert import Pair
from .lowrank import core_svd
from .ops import Op, factors


def svd(change: Op | Pair) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,), V (k, n) in float64."""
    pair = factors(change) if isinstance(change, Op) else change
    if pair is not None and pair[0].shape[1] <= min(pair[0].shape[0], pair[1].shape[1]):
        return core_svd(pair[0].double(), pair[1].double())
    dense = change.dense() if isinstance(change, Op) else change[0] @ change[1]
    U, S, V = torch.linalg.svd(dense.double(), full_matrices=False)
    return U, S, V


def effective_rank(S: Tensor) -> float:
    """exp of the entropy of sigma_i / sum sigma (Roy, Vetterli 2007); 0 for no change."""
    p = S.double() / S.double().sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum())) if len(p) and bool(p.isfinite().all()) else 0.0


def stable_rank(S: Tensor) -> float:
    """sum sigma² / sigma_1²; 0 for no change."""
    square = S.double().square()
    return float(square.sum() / square.max()) if len(S) and float(square.max()) > 0 else 0.0


def intruders(W: Tensor, change: Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """Of the k leading left singular vectors of W + dW, those whose largest |cosine| with any left singular vector of W is below
    epsilon: directions that the base does not have (Shuttleworth et al. 2024, arXiv:2410.21228)."""
    U = torch.linalg.svd(W.double(), full_matrices=False)[0]
    New = torch.linalg.svd(W.double() + change.double(), full_matrices=False)[0][:, :k]
    return int(((U.mT @ New).abs().amax(0) < epsilon).sum())


def cosine(a: Pair, b: Pair) -> float:
    """<dW_a, dW_b> / (|dW_a| |dW_b|) from factors; 0 where one is zero."""
    (B, A), (D, C) = ([t.double() for t in pair] for pair in (a, b))

    def inner(B: Tensor, A: Tensor, D: Tensor, C: Tensor) -> float:
        return float(((D.mT @ B) * (C @ A.mT)).sum())

    size = (inner(B, A, B, A) * inner(D, C, D, C)) ** 0.5
    return inner(B, A, D, C) / size if size > 0 else 0.0


def similarity(U: Tensor, V: Tensor) -> float:
    """|Uᵀ V|_F² / min(i, j) of orthonormal columns U (m, i), V (m, j): 1 where one space lies in the other, 0 where they are
    orthogonal (Hu et al. 2021, their phi)."""
    least = min(U.shape[1], V.shape[1])
    return float((U.mT @ V).square().sum()) / least if least else 0.0
