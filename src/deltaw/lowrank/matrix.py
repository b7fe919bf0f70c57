"""B A as a value: exact sums, the best cut, balanced factors, the tangent space of matrices of its rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ShapeError, SpecError
from ..ops import Op, chain, factors

Triple = tuple[Tensor, Tensor, Tensor]


def high(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype of at least float32: QR and SVD know no half precision."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in tensors]


def signs(U: Tensor) -> Tensor:
    """(k,): what makes each column's entry of largest size positive: the signs that LAPACK leaves open must not steer a run."""
    if not U.numel():
        return U.new_ones(U.shape[1])
    return torch.where(U.gather(0, U.abs().argmax(0, keepdim=True))[0] < 0, -1.0, 1.0).to(U)


def core_svd(B: Tensor, A: Tensor) -> Triple:
    """U (m, k), S (k,), Vt (k, n) of B A, k = min(m, r, n), through the r x r core of two thin QR decompositions.

    Each left vector has its entry of largest size positive. Cost O((m + n) r²).
    """
    B, A = high(B, A)
    (Qb, Rb), (Qa, Ra) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
    U, S, Vt = torch.linalg.svd(Rb @ Ra.mT, full_matrices=False)
    U, Vt = Qb @ U, Vt @ Qa.mT
    sign = signs(U)
    return U * sign, S, sign[:, None] * Vt


def keep(S: Tensor, rank: int | None = None, tol: float | None = None, energy: float | None = None) -> int:
    """How many of the descending values S stay: at most `rank`; as few as leave a tail |tail| <= tol |S|; as few as hold
    that share of sum S². Given together, the fewest that satisfy tol and energy, then at most `rank`."""
    if tol is not None and not 0 <= tol < 1 or energy is not None and not 0 < energy <= 1:
        raise SpecError(f"tol is a share in [0, 1), energy one in (0, 1]; found tol={tol}, energy={energy}")
    if rank is not None and rank < 0:
        raise SpecError(f"a rank is at least 0; found {rank}")
    count = len(S)
    square = S.to(torch.float64).square()
    tail = torch.cat(
        [square.flip(0).cumsum(0).flip(0), square.new_zeros(1)]
    )  # tail[k]: what dropping all from k on loses
    if tol is not None or energy is not None:
        allowed = min(tol**2 if tol is not None else 1.0, 1 - energy if energy is not None else 1.0) * float(tail[0])
        count = int((tail > allowed).sum())
    return count if rank is None else min(count, rank)


@dataclass(frozen=True)
class LowRankMatrix:
    """B A with B (m, r), A (r, n); error: a bound of its Frobenius distance from the exact result, 0 until something was cut.

    Sums and products with numbers are exact in the factors (ranks add up); `recompress` cuts and adds what it lost to the
    bound. Half precision is kept in storage and computed with in float32. Trap: many sums without a cut grow the rank and
    with it the time of everything else.
    """

    B: Tensor
    A: Tensor
    error: float = 0.0

    def __post_init__(self) -> None:
        if self.B.dim() != 2 or self.A.dim() != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ShapeError(
                f"factors (m, r) and (r, n) were expected; found {tuple(self.B.shape)} and {tuple(self.A.shape)}"
            )

    @classmethod
    def of(cls, op: Op) -> LowRankMatrix:
        """Of an operator with exact factors: a delta of an adapter, a chain of matrices."""
        pair = factors(op)
        if pair is None:
            raise ShapeError(f"{op} has no exact factors; cut it at a rank first (deltaw's to_lora(rank=...) does so)")
        return cls(*pair)

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """The number of columns of B; the matrix's own rank may be smaller."""
        return self.B.shape[1]

    @property
    def T(self) -> LowRankMatrix:
        return LowRankMatrix(self.A.mT, self.B.mT, self.error)

    def op(self) -> Op:
        return chain(self.B, self.A)

    def dense(self) -> Tensor:
        return self.B @ self.A

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        return (x @ self.A.mT.to(x.dtype)) @ self.B.mT.to(x.dtype)

    # ---- exact

    def __add__(self, other: LowRankMatrix) -> LowRankMatrix:
        if self.shape != other.shape:
            raise ShapeError(f"a sum of matrices of {self.shape} and {other.shape}: the shapes have to be equal")
        return LowRankMatrix(torch.cat([self.B, other.B], 1), torch.cat([self.A, other.A], 0), self.error + other.error)

    def __neg__(self) -> LowRankMatrix:
        return -1.0 * self

    def __sub__(self, other: LowRankMatrix) -> LowRankMatrix:
        return self + -1.0 * other

    def __rmul__(self, c: float) -> LowRankMatrix:
        if self.B.numel() <= self.A.numel():
            return LowRankMatrix(c * self.B, self.A, abs(c) * self.error)
        return LowRankMatrix(self.B, c * self.A, abs(c) * self.error)

    def inner(self, other: LowRankMatrix) -> Tensor:
        """sum of the entries of self ⊙ other, through r x r' products."""
        B, A, D, C = high(self.B, self.A, other.B, other.A)
        return ((D.mT @ B) * (C @ A.mT)).sum()

    def norm(self) -> Tensor:
        """Frobenius, from the core: a sum of squares of entries would lose half the digits where terms cancel."""
        B, A = high(self.B, self.A)
        norm: Tensor = torch.linalg.matrix_norm(torch.linalg.qr(B)[1] @ torch.linalg.qr(A.mT)[1].mT)
        return norm

    def svd(self) -> Triple:
        """U (m, k), S (k,), Vt (k, n)."""
        return core_svd(self.B, self.A)

    # ---- with a rank

    def recompress(
        self, rank: int | None = None, tol: float | None = None, energy: float | None = None
    ) -> LowRankMatrix:
        """The nearest matrix of the rank that `keep` chooses, balanced; `error` grows by the norm of the values dropped."""
        U, S, Vt = self.svd()
        k = keep(S, rank, tol, energy)
        cut = _balanced(U[:, :k], S[:k], Vt[:k], self.B, self.A)
        return replace(cut, error=self.error + float(torch.linalg.vector_norm(S[k:])))

    def balanced(self) -> LowRankMatrix:
        """The same matrix with Bᵀ B = A Aᵀ = diag(S), and no error of its own. The rank is kept, up to min(m, n)."""
        return self.recompress()

    def tangent(self, G: Tensor | LowRankMatrix) -> LowRankMatrix:
        """P_B G + G P_A - P_B G P_A, the part of G along which the rank does not change, in factors of rank <= 2r.

        G (m, n) is only multiplied with thin matrices. Trap: at a point of a smaller rank (LoRA's start, B = 0) the tangent
        space is not defined, and directions that the QR makes up count as the matrix's own.
        """
        Qb, _, Qa, _, core, U, V = self._tangent(G)
        left, right = torch.cat([Qb @ core + U, Qb], 1), torch.cat([Qa, V], 1)
        return LowRankMatrix(left.to(self.B), right.mT.to(self.A).contiguous())

    def retract(self, G: Tensor | LowRankMatrix, step: float = 1.0) -> LowRankMatrix:
        """The nearest matrix of the same rank to self + step · tangent(G), balanced; a core of 2r x 2r is decomposed.

        `error` stays: the retraction is the step, not an approximation of something.
        """
        Qb, Rb, Qa, Ra, core, U, V = self._tangent(G)
        (Qu, Ru), (Qv, Rv) = torch.linalg.qr(U), torch.linalg.qr(V)
        zero = core.new_zeros(Ru.shape[0], Rv.shape[0])
        top = torch.cat([Rb @ Ra.mT + step * core, step * Rv.mT], 1)
        P, S, Qt = torch.linalg.svd(torch.cat([top, torch.cat([step * Ru, zero], 1)]), full_matrices=False)
        left, right, k = torch.cat([Qb, Qu], 1) @ P, Qt @ torch.cat([Qa, Qv], 1).mT, min(self.rank, len(S))
        return replace(_balanced(left[:, :k], S[:k], right[:k], self.B, self.A), error=self.error)

    def _tangent(self, G: Tensor | LowRankMatrix) -> tuple[Tensor, ...]:
        """Q_B, R_B, Q_A, R_A; Q_Bᵀ G Q_A; (I - P_B) G Q_A; (I - P_A) Gᵀ Q_B."""
        if tuple(G.shape) != self.shape:
            raise ShapeError(f"a direction of shape {self.shape} was expected; found {tuple(G.shape)}")
        B, A = high(self.B, self.A)
        (Qb, Rb), (Qa, Ra) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
        if isinstance(G, LowRankMatrix):
            GQ, GtQ = G.B.to(B) @ (G.A.to(B) @ Qa), G.A.mT.to(B) @ (G.B.mT.to(B) @ Qb)
        else:
            GQ, GtQ = G.to(B) @ Qa, G.mT.to(B) @ Qb
        core = Qb.mT @ GQ
        return Qb, Rb, Qa, Ra, core, GQ - Qb @ core, GtQ - Qa @ core.mT


def _balanced(U: Tensor, S: Tensor, Vt: Tensor, B: Tensor, A: Tensor) -> LowRankMatrix:
    """sqrt(S) on both sides, in the dtypes of B and A."""
    root = S.sqrt()
    return LowRankMatrix((U * root).to(B).contiguous(), (root[:, None] * Vt).to(A).contiguous())
