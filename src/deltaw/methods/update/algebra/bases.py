"""Where a one-sided frame comes from: k orthonormal columns for the left space of a matrix.

A basis is called with M (d x e), the number of columns, the old frame (or None) and a `Draw`, and gives P (d x k). M is the
gradient, or its transpose where the frame is on the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ....lowrank import signs
from ...leading import iterated
from .draw import Draw


class Basis(Protocol):
    """See the module."""

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor: ...


def signed(P: Tensor) -> Tensor:
    """Each column with its entry of largest size positive."""
    return P * signs(P)


@dataclass(frozen=True)
class Haar:
    """k directions drawn uniformly: QR of a Gaussian matrix, with the signs that make it uniform."""

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        Q, R = torch.linalg.qr(draw.normal((M.shape[0], k), M, "haar"))
        uniform: Tensor = Q * torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)
        return uniform


@dataclass(frozen=True)
class SvdSample:
    """k of the left singular vectors, drawn without replacement with weights sigma_i / sum sigma (one after the other), in order of sigma.

    Drawn as the k smallest waiting times -log(u_i) / sigma_i (Efraimidis, Spirakis 2006). A vector with sigma = 0 comes only
    where the others do not suffice.
    """

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        U, sigma, _ = torch.linalg.svd(M, full_matrices=False)
        wait = -torch.log1p(-draw.uniform(tuple(sigma.shape), sigma, "sample")) / sigma
        return signed(U[:, wait.topk(k, largest=False).indices.sort().values])


@dataclass(frozen=True)
class Power:
    """One round of subspace iteration from the old frame, P = qr(M Mᵀ P_old); an SVD where there is none yet."""

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        return Svd()(M, k, old, draw) if old is None else signed(torch.linalg.qr(M @ (M.mT @ old))[0])


@dataclass(frozen=True)
class Svd:
    """The k left singular vectors of the largest singular values, by LAPACK."""

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        return signed(torch.linalg.svd(M, full_matrices=False)[0][:, :k])


@dataclass(frozen=True)
class Rsvd:
    """The same by subspace iteration (Halko, Martinsson, Tropp 2011): k + oversample columns, `power` rounds of QR.

    It starts from a Gaussian sketch, the same in every process. The energy it misses is at most
    (sigma_{k+1} / sigma_k)^(4 power + 2) of what the exact frame has, up to the sketch's constant; cost
    4 d e (k + oversample) (power + 1) FLOPs instead of the SVD's ~20 d e min(d, e). power = 2 keeps the angle to the exact space
    below 1e-3 where the spectrum decays.
    """

    oversample: int = 8
    power: int = 2

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        width = min(k + self.oversample, *M.shape)
        if 2 * width > min(M.shape):  # the sketch would be as wide as the matrix
            return Svd()(M, k, old, draw)
        sketch = draw.normal((M.shape[1], width), M, "rsvd")
        return signed(iterated(M, sketch, self.power)[0][:, :k])


Solver = Literal["randomized", "exact"]


def solver(word: Solver) -> Basis:
    """Where the leading singular vectors come from that a rule's `svd` asks for."""
    return Rsvd() if word == "randomized" else Svd()
