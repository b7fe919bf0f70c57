"""The nearest low-rank matrix where entries count differently, or only some are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ShapeError, SpecError
from ...lowrank import LowRankMatrix
from ..factors import positive


@dataclass
class Weighted:
    """M ≈ B A, B (m, r), A (r, n), balanced; losses: the weighted loss at the start and after every sweep."""

    B: Tensor
    A: Tensor
    losses: list[float] = field(default_factory=list)

    def dense(self) -> Tensor:
        return self.B @ self.A


def weighted_als(
    M: Tensor,
    weights: Tensor,
    r: int,
    sweeps: int = 200,
    ridge: float = 0.0,
    tol: float = 1e-12,
    steps: int | None = None,
) -> Weighted:
    """min over B (m, r), A (r, n) of sum_ij weights_ij (M_ij - (B A)_ij)² + ridge |B A|²_F, in float64, weights >= 0.

    Start: the truncated SVD of weights ⊙ M, times mn / sum of the weights. A sweep: A's rows are made orthonormal by QR, then every row of B is
    a least-squares problem of size r, b_i = (sum_j w_ij a_j a_jᵀ + ridge I)⁻¹ sum_j w_ij M_ij a_j; then the same for A's columns. With
    orthonormal partners both halves see the same ridge, so the loss never rises. steps=None solves exactly, in m n r²
    operations; steps=k by k conjugate-gradient steps with the diagonal as preconditioner from the values before, in 2 k m n r, and has the same limit.
    A sweep that gains less than tol of the first loss is the last. Uses: compression of a change weighted by a Fisher diagonal;
    completion of a change of which some entries are known (weights 0 and 1).
    Source: alternating minimisation as in Gu et al. 2023 (arXiv:2302.11068), who show that inexact solves suffice. Trap: a row with fewer than r weights
    needs ridge > 0; weights u vᵀ need none of this: `weighted_svd`.
    """
    if M.dim() != 2 or weights.shape != M.shape:
        raise ShapeError(
            f"a matrix and weights of its shape were expected; found {tuple(M.shape)} and {tuple(weights.shape)}"
        )
    positive(r=r, sweeps=sweeps, **({} if steps is None else {"steps": steps}))
    w = weights.detach().to(torch.float64)
    if bool((w < 0).any()) or not float(w.sum()) > 0 or r > min(M.shape) or ridge < 0:
        raise SpecError(
            f"weights and ridge are at least 0, some weight is more, r is at most {min(M.shape)}; found r={r}, ridge={ridge}"
        )
    M = torch.where(w > 0, M.detach().to(torch.float64), 0.0)  # an entry without weight may be nan
    U, S, Vt = torch.linalg.svd(w * M * (w.numel() / float(w.sum())), full_matrices=False)
    B, A = U[:, :r] * S[:r], Vt[:r]
    losses = [_loss(M, w, B, A, ridge)]
    for _ in range(sweeps):
        B, A = _half(M, w, B, A, ridge, steps)
        A, B = (t.mT for t in _half(M.mT, w.mT, A.mT, B.mT, ridge, steps))
        losses.append(_loss(M, w, B, A, ridge))
        if losses[-2] - losses[-1] <= tol * losses[0]:
            break
    even = LowRankMatrix(B, A).balanced()
    return Weighted(even.B, even.A, losses)


def weighted_svd(M: Tensor, u: Tensor, v: Tensor, r: int) -> Weighted:
    """The same for weights u_i v_j > 0, in closed form: the truncated SVD of diag(sqrt u) M diag(sqrt v), unscaled again."""
    if M.dim() != 2 or u.shape != M.shape[:1] or v.shape != M.shape[1:]:
        raise ShapeError(
            f"a matrix with a weight per row and per column was expected; found {tuple(M.shape)}, {tuple(u.shape)}, {tuple(v.shape)}"
        )
    if bool((u <= 0).any()) or bool((v <= 0).any()):
        raise SpecError("the weights of rows and columns have to be positive: a row of no weight could be anything")
    positive(r=r)
    M, a, c = (t.detach().to(torch.float64) for t in (M, u.sqrt(), v.sqrt()))
    U, S, Vt = torch.linalg.svd(a[:, None] * M * c, full_matrices=False)
    root = S[:r].sqrt()
    return Weighted(U[:, :r] * root / a[:, None], root[:, None] * Vt[:r] / c, [float(S[r:].square().sum())])


def _loss(M: Tensor, w: Tensor, B: Tensor, A: Tensor, ridge: float) -> float:
    fit = B @ A
    return float((w * (M - fit).square()).sum() + ridge * fit.square().sum())


def _half(M: Tensor, w: Tensor, B: Tensor, A: Tensor, ridge: float, steps: int | None) -> tuple[Tensor, Tensor]:
    """A's rows made orthonormal, the product kept; then the B of least loss, or `steps` steps on the way to it."""
    Q, R = torch.linalg.qr(A.mT)
    A, B = Q.mT, B @ R.mT
    target = (w * M) @ A.mT
    if steps is None:
        r = len(A)
        N = (w @ (A[:, None] * A).flatten(0, 1).mT).reshape(-1, r, r)
        N.diagonal(dim1=1, dim2=2).add_(ridge)
        L, failed = torch.linalg.cholesky_ex(N)
        thin = L.diagonal(dim1=1, dim2=2).amin(1) <= 1e-8 * L.diagonal(dim1=1, dim2=2).amax(1)
        if bool(((failed != 0) | thin).any()):
            raise SpecError(
                f"a row or column has fewer than {r} weights that matter, so it is not determined: give ridge > 0"
            )
        return torch.cholesky_solve(target[..., None], L).squeeze(-1), A
    scale = (w @ A.square().mT + ridge).clamp_min(torch.finfo(w.dtype).tiny)  # the diagonal of the normal matrices
    rest = target - (w * (B @ A)) @ A.mT - ridge * B
    z = rest / scale
    p, rho = z, (rest * z).sum(1, keepdim=True)
    for _ in range(steps):
        Np = (w * (p @ A)) @ A.mT + ridge * p
        curve = (p * Np).sum(1, keepdim=True)
        alpha = torch.where(curve > 0, rho / curve, 0.0)  # a row that is solved stays
        B, rest = B + alpha * p, rest - alpha * Np
        z = rest / scale
        new = (rest * z).sum(1, keepdim=True)
        p, rho = z + torch.where(rho > 0, new / rho, 0.0) * p, new
    return B, A
