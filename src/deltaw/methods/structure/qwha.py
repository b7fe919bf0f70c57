"""QWHA: sparse coefficients in the Walsh-Hadamard basis of the inputs, beside a quantised base."""

from __future__ import annotations

import math

from torch import int64

from ...errors import ShapeError
from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import positive
from ..transforms import Between, Coefficients, Walsh, paley


@method(paper="arXiv:2509.17428", claims=("more accurate at low bits than low-rank adapters; trains faster than the Fourier ones",))
class QWHA(Method):
    """W' = W + (s / sqrt m) S Hᵀ / n, H (n, n) the ±1 Walsh-Hadamard matrix, S (m, n) with trained c (K,) at frozen I (K,).

    A row of S is an output channel, a column a frequency of the inputs. K = r (m + n), as many as LoRA of rank r. The
    base may be quantised: the update is added beside it. n log n + K operations a token; many tokens build S Hᵀ once.
    Start: c = 0, the base's first output, at random places from `seed`. (The paper chooses the places from the error of
    a quantiser and data, and refits c to it: that can be written into I and c.) Not low-rank, not of the base's grid.
    Source: Jeon et al. 2025 and the authors' code, s as in their runs. n must be a power of 2, or that times an order of
    Paley's; the order of frequencies for the latter is this library's own, so files are not the authors'.
    Trap: only the inputs are transformed: a coefficient changes one row. c is divided by sqrt m n / s, however it starts.

    >>> from deltaw.methods import QWHA
    >>> {k: v.shape for k, v in QWHA(r=2).params(10, 8).items()}
    {'c': (36,), 'I': (36,)}
    """

    r: int = 64
    s: float = 0.25
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        paley(n)
        if (K := self.r * (m + n)) > m * n:
            raise ShapeError(f"r = {self.r} asks for {K} coefficients; a {m} x {n} weight has {m * n}")
        places = Param((K,), lambda s, _: s.choose(K, m * n), train=False, seed=self.seed, dtype=int64)
        return {"c": Param((K,)), "I": places}

    def weight(self, W: Op, p: Tensors) -> Op:
        m, n = W.shape
        S = Coefficients(p.c * (self.s / (math.sqrt(m) * n)), p.I // n, p.I % n, (m, n))
        return W + Between(None, S, Walsh(n, p.c).T)
