"""LoKr: a Kronecker product, its large factor low-rank."""

from __future__ import annotations

import math
from typing import Any

from ...ops import Kron, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, zeros
from ..factors import positive


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """size = a · b: the factor itself where it divides; else the most balanced a <= b with a <= factor (-1: any)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    a = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (factor == -1 or d <= max(factor, 1)))
    return a, size // a


@method(paper="arXiv:2309.14859", claims=("a high rank from few numbers: the ranks of the factors multiply",))
class LoKr(Method):
    """y = W x + b + s (C ⊗ D) x, s = alpha / r. C (m1, n1), D (m2, n2), m = m1 m2, n = n1 n2; C is slow on both axes.

    D = D_b D_a, (m2, r) (r, n2), unless r >= max(m2, n2) / 2; C = C_b C_a with `decompose_both` and r < max(m1, n1) / 2.
    Start: C (or C_b) = 0, the rest ~ U(±1/sqrt fan-in). Trained per site: |C| + |D|. Exact LoRA rank: rank C · rank D.
    Source: LyCORIS, Yeh et al. 2023; split, start and defaults as in HF PEFT, convolutions too (the kernel goes to D).
    Trap: a factor that divides is taken as it is, so (m1, m2) need not be sorted; at a large r, D is full and r only scales.

    >>> from deltaw.methods import LoKr
    >>> {k: v.shape for k, v in LoKr(r=2).params(128, 64).items()}
    {'C': (8, 8), 'D_b': (16, 2), 'D_a': (2, 8)}
    """

    r: int = 8
    alpha: float = 8.0
    decompose_both: bool = False
    decompose_factor: int = -1

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int, window: int = 1) -> Declared:
        positive(r=self.r)
        (m1, m2), (n1, n2) = (factorization(k, self.decompose_factor) for k in (m, n // window))
        split = self.decompose_both and self.r < max(m1, n1) / 2, self.r < max(m2, n2) / 2
        out: Declared = {}
        for word, a, b, low, first in (("C", m1, n1, split[0], zeros), ("D", m2, n2 * window, split[1], kaiming)):
            pair = {f"{word}_b": Param((a, self.r), first), f"{word}_a": Param((self.r, b), kaiming)}
            out |= pair if low else {word: Param((a, b), first)}
        return out

    def declare(self, site: Any) -> Declared:
        return self.params(*site.shape, site.window)  # type: ignore[call-arg]

    def weight(self, W: Op, p: Tensors) -> Op:
        C = p.C if "C" in p.names() else chain(p.C_b, p.C_a)
        D = p.D if "D" in p.names() else chain(p.D_b, p.D_a)
        return W + self.scale * Kron(C, D)
