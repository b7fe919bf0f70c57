"""FourierFT: a few coefficients of the two-dimensional spectrum of the update."""

from __future__ import annotations

from typing import Literal

from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method, normal, zeros
from ..transforms import Spectrum, positions


@method(
    paper="arXiv:2405.03003",
    start="none: c ~ N(0, 1), as in the authors' code and in PEFT; init='zeros' is the identity",
    claims=("LoRA's scores with 6 to 16 times fewer parameters",),
)
class FourierFT(Method):
    """W' = W + s Re ifft2(S), S (m, n) zero but for S[i_t, j_t] = c_t: trained c (k,) at frozen positions I = i n + j.

    Entry (p, q) of the update is (s / mn) sum_t c_t cos(2π (i_t p / m + j_t q / n)). Applied by an ifft of x, a gather,
    and an ifft of size m: n log n + k + m log m operations a token; many tokens build the update once.
    I comes from `seed`, the same at all sites of one shape. Count: k, whatever the size. Not low-rank (rank <= 2 k).
    Source: Gao et al. 2024; start as in the authors' code, positions and defaults as in HF PEFT.
    Trap: s has to be large, because ifft2 divides by mn: the same s is a smaller update on a larger layer. (i, j) and
    (m - i, n - j) are the same cosine, so positions that are drawn twice up to sign are wasted.

    >>> from deltaw.methods import FourierFT
    >>> {k: v.shape for k, v in FourierFT(k=40).params(10, 6).items()}
    {'c': (40,), 'I': (40,)}
    """

    k: int = 1000
    s: float = 150.0
    seed: int = 777
    init: Literal["normal", "zeros"] = "normal"

    def params(self, m: int, n: int) -> Declared:
        fill = normal(1.0) if self.init == "normal" else zeros
        return {"c": Param((self.k,), fill), "I": positions("fourierft", self.k, m, n, self.seed)}

    def weight(self, W: Op, p: Tensors) -> Op:
        n = W.shape[1]
        return W + Spectrum(self.s * p.c, p.I // n, p.I % n, W.shape)
