"""A truncated SVD that follows its matrix through low-rank changes and new rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ShapeError
from .matrix import LowRankMatrix, core_svd, high, keep

DRIFT = {torch.float64: 1e-10, torch.float32: 1e-5}  # |UᵀU - I| above which the bases are made orthonormal again


@dataclass(frozen=True)
class IncrementalSVD:
    """U diag(S) Vᵀ with U (m, r), V (n, r) orthonormal. A value: every update returns another.

    update(C, D): W + C Dᵀ, C (m, k), D (n, k). With the parts of C and D outside the bases as Q_C R_C and Q_D R_D (projected
    twice: once leaves as many digits as cancel), the core of size r + k is [diag S, 0; 0, 0] + [UᵀC; R_C][VᵀD; R_D]ᵀ; its
    SVD rotates [U Q_C] and [V Q_D]. Cost O((m + n)(r + k)² + (r + k)³). Without a cut it is exact.
    error: a bound of the Frobenius distance from the exact matrix: what each cut dropped, summed (norms, not squares: two cuts
    may drop the same direction). Rounding turns the bases out of the right angle: every update measures that, and a QR
    repairs it above `DRIFT`. Source: Brand 2006; as in Deng et al. 2024 (arXiv:2401.09703), without their lazy rotations.
    Trap: a downdate (update with -C) leaves values of rounding size behind: cut by `tol`.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    error: float = 0.0

    @classmethod
    def of(cls, M: LowRankMatrix) -> IncrementalSVD:
        U, S, Vt = M.svd()
        return cls(U, S, Vt.mT, M.error)

    @classmethod
    def empty(cls, m: int, n: int, dtype: torch.dtype = torch.float32) -> IncrementalSVD:
        """The zero matrix, of rank 0."""
        return cls(torch.zeros(m, 0, dtype=dtype), torch.zeros(0, dtype=dtype), torch.zeros(n, 0, dtype=dtype))

    @property
    def shape(self) -> tuple[int, int]:
        return self.U.shape[0], self.V.shape[0]

    @property
    def rank(self) -> int:
        return len(self.S)

    def matrix(self) -> LowRankMatrix:
        """As balanced factors."""
        root = self.S.sqrt()
        return LowRankMatrix(self.U * root, root[:, None] * self.V.mT, self.error)

    def drift(self) -> float:
        """The largest entry of UᵀU - I and VᵀV - I."""
        eye = torch.eye(self.rank, dtype=self.U.dtype, device=self.U.device)
        return max((float((Q.mT @ Q - eye).abs().max()) for Q in (self.U, self.V)), default=0.0) if self.rank else 0.0

    def repaired(self) -> IncrementalSVD:
        """The same matrix in bases that are orthonormal to rounding."""
        U, S, Vt = core_svd(self.U * self.S, self.V.mT)
        return IncrementalSVD(U, S, Vt.mT, self.error)

    def update(
        self, C: Tensor, D: Tensor, rank: int | None = None, tol: float | None = None, energy: float | None = None
    ) -> IncrementalSVD:
        """W + C Dᵀ, cut as `keep` says."""
        if C.dim() != 2 or D.dim() != 2 or C.shape[1] != D.shape[1] or (C.shape[0], D.shape[0]) != self.shape:
            m, n = self.shape
            raise ShapeError(
                f"a term ({m}, k) times ({n}, k)ᵀ was expected; found {tuple(C.shape)} and {tuple(D.shape)}"
            )
        U, S, V, C, D = high(self.U, self.S, self.V, C, D)
        (left, Qc), (right, Qd) = _outside(U, C), _outside(V, D)
        core = left @ right.mT
        core[: len(S), : len(S)].diagonal().add_(S)
        P, values, Qt = torch.linalg.svd(core, full_matrices=False)
        k = min(keep(values, rank, tol, energy), *self.shape)
        lost = float(torch.linalg.vector_norm(values[k:]))
        new = IncrementalSVD(
            torch.cat([U, Qc], 1) @ P[:, :k], values[:k], torch.cat([V, Qd], 1) @ Qt[:k].mT, self.error + lost
        )
        return new.repaired() if new.drift() > DRIFT[U.dtype] else new

    def append_rows(self, E: Tensor, **cut: float | None) -> IncrementalSVD:
        """[W; E] for E (k, n)."""
        k = E.shape[0]
        wide = IncrementalSVD(torch.cat([self.U, self.U.new_zeros(k, self.rank)]), self.S, self.V, self.error)
        C = torch.cat([E.new_zeros(self.U.shape[0], k), torch.eye(k, dtype=E.dtype, device=E.device)])
        return wide.update(C, E.mT, **cut)  # type: ignore[arg-type]

    def append_columns(self, E: Tensor, **cut: float | None) -> IncrementalSVD:
        """[W, E] for E (m, k)."""
        return self.T.append_rows(E.mT, **cut).T

    @property
    def T(self) -> IncrementalSVD:
        return IncrementalSVD(self.V, self.S, self.U, self.error)


def _outside(U: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """([UᵀC; R], Q) with Q R = C - U UᵀC, projected twice, Q orthonormal to U as well.

    Where C has no part outside U the QR makes a column up, which may lean on U: it is dropped, with its row of R.
    """
    inside = U.mT @ C
    rest = C - U @ inside
    more = U.mT @ rest
    Q, R = torch.linalg.qr(rest - U @ more)
    small = torch.finfo(C.dtype).eps * max(C.shape) * torch.linalg.matrix_norm(C)
    own = torch.linalg.vector_norm(R, dim=1) > small
    return torch.cat([inside + more, R[own]]), Q[:, own]
