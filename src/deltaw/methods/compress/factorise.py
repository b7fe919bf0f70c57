"""One factoriser: the nearest product of two thin matrices, in a metric."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError

Metric = Tensor | None  # None: the identity; a vector: a diagonal; a matrix: a lower triangle


def factorise(W: Tensor, k: int, P: Metric = None, C: Metric = None) -> tuple[Tensor, Tensor, Tensor]:
    """(L (m, k), R (k, n), sigma): L R minimises |P (W - L R) C|_F over rank k; L = P^-1 U_k sqrt(S_k), R = sqrt(S_k) V_kᵀ C^-1, where
    P W C = U S Vᵀ. The error² is the sum of sigma_i², i > k. In float64, by solving with the triangles, never by inverses.
    """
    if not 0 < k <= min(W.shape):
        raise ShapeError(f"a rank from 1 to {min(W.shape)} was expected of a {W.shape[0]} x {W.shape[1]} weight; found {k}")
    M = W.detach().double()
    M = _times(P, M) if P is not None else M
    M = _times(C, M.mT, turned=True).mT if C is not None else M
    U, S, V = torch.linalg.svd(M, full_matrices=False)
    root = S[:k].sqrt()
    L, R = U[:, :k] * root, root[:, None] * V[:k]
    return _solve(P, L), _solve(C, R.mT, turned=True).mT, S


def _times(D: Tensor, M: Tensor, turned: bool = False) -> Tensor:
    D = D.to(M)
    return D[:, None] * M if D.dim() == 1 else (D.mT if turned else D) @ M


def _solve(D: Metric, M: Tensor, turned: bool = False) -> Tensor:
    """D^-1 M, or D^-T M."""
    if D is None:
        return M
    D = D.to(M)
    return M / D[:, None] if D.dim() == 1 else torch.linalg.solve_triangular(D.mT if turned else D, M, upper=turned)


def root(gram: Tensor, least: float = 1e-6) -> Tensor:
    """The Cholesky factor of a Gram matrix, C Cᵀ = M; where M is not positive definite, of M + (least · mean(diag) - lambda_min) I."""
    M = gram.double()
    C, bad = torch.linalg.cholesky_ex(M)
    if int(bad) or not bool(torch.isfinite(C).all()):
        low = torch.linalg.eigvalsh(M)[0].clamp(max=0)
        C = torch.linalg.cholesky(M + (least * M.diagonal().mean().clamp(min=1e-30) - low) * torch.eye(len(M)).to(M))
    return C
