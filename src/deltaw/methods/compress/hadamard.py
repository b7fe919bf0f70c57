"""Hadamard factors of a dense matrix by alternating least squares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import random as rng
from ..factors import positive

Pair = tuple[Tensor, Tensor]


@dataclass
class Hadamards:
    """M ≈ (B1 A1) ⊙ (B2 A2): B (m, r), A (r, n), named as in LoHa and ABBA; `errors`: |M - fit| / |M| after every sweep."""

    B1: Tensor
    A1: Tensor
    B2: Tensor
    A2: Tensor
    errors: list[float] = field(default_factory=list)

    def dense(self) -> Tensor:
        return (self.B1 @ self.A1) * (self.B2 @ self.A2)


def hadamard_als(
    M: Tensor,
    r1: int,
    r2: int,
    sweeps: int = 200,
    restarts: int = 4,
    ridge: float = 1e-8,
    mask: Tensor | None = None,
    tol: float = 1e-12,
    seed: int = 0,
) -> Hadamards:
    """M (m, n) ≈ (B1 A1) ⊙ (B2 A2), ranks r1 and r2, over the entries where `mask` is not 0 (None: all); in float64.

    With the other product G fixed, row i of B1 is a least-squares problem of size r1 with weights G_i² mask_i; so is every
    column of A1; then the two products change roles. `ridge`, relative to the normal matrix, pulls towards the values of
    the sweep before, so the error never rises. The best of `restarts` starts: sign(M) sqrt|M| and sqrt|M|, cut by SVD,
    then random ones. The four norms are made equal at the end. A sweep whose error, or
    what it gained, is below `tol` is the last.
    Source: Lu 2024 (arXiv:2408.05883). Trap: there are bad local minima, and at equal parameters an SVD can be closer on a
    matrix without this structure: compare, and raise `restarts`.
    """
    if M.dim() != 2 or (mask is not None and mask.shape != M.shape):
        found = "no mask" if mask is None else f"a mask of {tuple(mask.shape)}"
        raise ShapeError(f"a matrix and a mask of its shape were expected; found {tuple(M.shape)} and {found}")
    positive(r1=r1, r2=r2, sweeps=sweeps, restarts=restarts)
    M = M.detach().to(torch.float64)
    seen = torch.ones_like(M) if mask is None else (mask != 0).to(M)
    M = torch.where(seen > 0, M, 0.0)  # an entry that is not seen may be nan
    fits = [_descend(M, seen, _start(M, (r1, r2), k, seed), sweeps, ridge, tol) for k in range(restarts)]
    return _balanced(min(fits, key=lambda fit: fit.errors[-1]))


def _start(M: Tensor, ranks: tuple[int, int], k: int, seed: int) -> list[Pair]:
    root, pairs = M.abs().sqrt(), []
    for i, r in enumerate(ranks):
        if k == 0 and r <= min(M.shape):
            U, S, V = torch.linalg.svd(root if i else M.sign() * root, full_matrices=False)
            pairs.append((U[:, :r] * S[:r].sqrt(), S[:r].sqrt()[:, None] * V[:r]))
        else:
            key = rng.key("hadamard", seed, k, i)
            B, A = rng.normal((M.shape[0], r), key, r**-0.5), rng.normal((r, M.shape[1]), key ^ 1)
            pairs.append((B.to(M), A.to(M)))
    return pairs


def _rows(M: Tensor, seen: Tensor, G: Tensor, B: Tensor, A: Tensor, ridge: float) -> Tensor:
    """The B of least |M - (B A) ⊙ G| over the entries that are seen, a step of the proximal kind from the old B."""
    r = A.shape[0]
    N = ((seen * G.square()) @ (A[:, None] * A).flatten(0, 1).mT).unflatten(1, (r, r))
    weight = ridge * N.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(N.dtype).tiny
    N.diagonal(dim1=1, dim2=2).add_(weight[:, None])
    return torch.linalg.solve(N, ((seen * G * M) @ A.mT + weight[:, None] * B)[..., None]).squeeze(-1)


def _descend(M: Tensor, seen: Tensor, pairs: list[Pair], sweeps: int, ridge: float, tol: float) -> Hadamards:
    size = torch.linalg.vector_norm(M).clamp_min(torch.finfo(M.dtype).tiny)
    errors: list[float] = []
    for _ in range(sweeps):
        for i in (0, 1):
            (B, A), (other_B, other_A) = pairs[i], pairs[1 - i]
            G = other_B @ other_A
            B = _rows(M, seen, G, B, A, ridge)
            A = _rows(M.mT, seen.mT, G.mT, A.mT, B.mT, ridge).mT
            pairs[i] = (B, A)
        (B1, A1), (B2, A2) = pairs
        errors.append(float(torch.linalg.vector_norm(seen * (M - (B1 @ A1) * (B2 @ A2))) / size))
        if errors[-1] < tol or (len(errors) > 1 and errors[-2] - errors[-1] < tol):
            break
    return Hadamards(*pairs[0], *pairs[1], errors)


def _balanced(fit: Hadamards) -> Hadamards:
    """The same product with four factors of one norm: their scales are free."""
    parts = [fit.B1, fit.A1, fit.B2, fit.A2]
    norms = torch.stack([torch.linalg.vector_norm(t) for t in parts])
    if bool((norms == 0).any()):
        return fit
    mean = norms.log().mean().exp()
    return Hadamards(*(t * (mean / norm) for t, norm in zip(parts, norms)), fit.errors)
