"""WaveFT: a few wavelet coefficients of the update."""

from __future__ import annotations

from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method
from ..transforms import Between, Coefficients, Haar, positions


@method(paper="arXiv:2505.12532", claims=("fidelity and diversity of generated images above LoRA's at a smaller count",))
class WaveFT(Method):
    """W' = W + s H_m S H_nᵀ, H the one-level inverse Haar transform, S (m, n) with trained c (k,) at frozen positions.

    H_N c: neighbours 2i and 2i + 1 are (a_i ± d_i) / sqrt 2, the averages a first, then the differences d. I (k,) are flat
    positions from `seed`, the same at all sites of one shape; the quadrants top right and bottom left of S change
    places, as the wavelet library behind HF PEFT names them.
    Start: c = 0, the base's first output. Count: k, whatever the size. n + k + m operations a token; many tokens build
    the update once. Not low-rank. Source: Bilican et al. 2025; positions and defaults as in HF PEFT with db1.
    Trap: an odd size is transformed one longer and cut, so there the map is not orthonormal. Longer wavelets are left
    out; `use_idwt=False` in PEFT is a sparse update (see shira).

    >>> from deltaw.methods import WaveFT
    >>> {k: v.shape for k, v in WaveFT(k=40).params(10, 6).items()}
    {'c': (40,), 'I': (40,)}
    """

    k: int = 2592
    s: float = 25.0
    seed: int = 777

    def params(self, m: int, n: int) -> Declared:
        return {"c": Param((self.k,)), "I": positions("waveft", self.k, m, n, self.seed)}

    def weight(self, W: Op, p: Tensors) -> Op:
        m, n = W.shape
        i, j, h, v = p.I // n, p.I % n, (m + 1) // 2, (n + 1) // 2
        turn = (i < h).long() - (j < v).long()  # 1 top right, which goes down and left; -1 bottom left; 0 elsewhere
        S = Coefficients(self.s * p.c, i + h * turn, j - v * turn, (m + m % 2, n + n % 2))
        return W + Between(Haar(m, p.c), S, Haar(n, p.c).T)
