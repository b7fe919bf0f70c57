"""Asym: LoRA with a frozen random A; only B is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, method, zeros


def orthonormal(start: Start, shape: tuple[int, ...]) -> Tensor:
    """r orthonormal rows: the Q of an (n, r) matrix with entries U(-1/2, 1/2)."""
    return torch.linalg.qr(start.uniform((shape[1], shape[0]), 0.5)).Q.mT


@method(paper="arXiv:2402.16842", claims=("training only B is about as good as training both factors",))
class Asym(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n) frozen with A Aᵀ = I, B (m, r) trained.

    Start: B = 0, so the first output is the base's. A follows from `seed` and n alone: the same at every site of that
    width, in every adapter, and not stored. So averaging the B of several clients averages their deltas exactly.
    Trainable per site: r m. Exact LoRA rank: r. Source: Zhu et al. 2024, the variant "rand" (there from an SVD).
    Trap: the official option V takes columns of Vᵀ, which are no right singular vectors of W.

    >>> from deltaw.methods import Asym
    >>> [name for name, p in Asym(r=4).params(10, 6).items() if p.train]
    ['B']
    """

    r: int = 8
    alpha: float = 16.0
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.r <= n:
            raise ShapeError(f"{n} inputs have room for 1 to {n} orthonormal rows; found r = {self.r}")
        return {
            "A": Param((self.r, n), orthonormal, train=False, seed=self.seed),
            "B": Param((m, self.r), zeros),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + (self.alpha / self.r) * chain(p.B, p.A)
