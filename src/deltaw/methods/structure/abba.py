"""ABBA: the entrywise product of two learned low-rank matrices, one started from W."""

from __future__ import annotations

import math

from torch import Tensor

from ...errors import ShapeError
from ...ops import Hadamard, Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, method
from ..factors import positive


@method(paper="arXiv:2505.14238", claims=("above LoRA and HiRA on arithmetic and commonsense reasoning",))
class ABBA(Method):
    """y = W x + b + s ((B1 A1) ⊙ (B2 A2)) x, s = alpha² / sqrt(r1 r2). A1 (r1, n), B1 (m, r1), A2 (r2, n), B2 (m, r2).

    All trained, (r1 + r2)(m + n) per site. Start: B1 A1 the truncated SVD of W with sqrt(S) on both sides,
    A2 ~ U(±sqrt(6/n)), B2 = 0: the first output is the base's. Exact LoRA rank: r1 r2.
    Source: Singhal et al. 2025. At the default r1 = r2 = alpha the scale is alpha, also in the authors' code.
    Trap: their code scales by sqrt(alpha1 alpha2) and ties r2 to r1; this is the paper's formula.

    >>> from deltaw.methods import ABBA
    >>> ABBA(r1=4, r2=16, alpha=4.0).scale
    2.0
    """

    r1: int = 16
    r2: int = 16
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        return self.alpha**2 / math.sqrt(self.r1 * self.r2)

    def params(self, m: int, n: int) -> Declared:
        positive(r1=self.r1, r2=self.r2)
        if self.r1 > min(m, n):
            raise ShapeError(f"r1 = {self.r1} is more than the {min(m, n)} singular values of a {m} x {n} weight")

        def left(start: Start, _: tuple[int, ...]) -> Tensor:
            U, S, _V = start.svd(self.r1)
            return U * S.sqrt()

        def right(start: Start, _: tuple[int, ...]) -> Tensor:
            _U, S, V = start.svd(self.r1)
            return S.sqrt()[:, None] * V

        def he(start: Start, shape: tuple[int, ...]) -> Tensor:
            return start.uniform(shape, math.sqrt(6.0 / n))

        first = {"A1": Param((self.r1, n), right), "B1": Param((m, self.r1), left)}
        return {**first, "A2": Param((self.r2, n), he), "B2": Param((m, self.r2))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * Hadamard(chain(p.B1, p.A1), chain(p.B2, p.A2))
