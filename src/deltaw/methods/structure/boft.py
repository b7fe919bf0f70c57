"""BOFT: a dense rotation of the input from sparse butterfly factors."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import BlockDiag, Eye, Op, chain
from ...spec import Declared, Method, Param, Tensors, method, ones
from ..cayley import cayley
from ..factors import divides, positive
from ..pick import Pick


def butterfly(n: int, b: int, level: int) -> Tensor:
    """P_level (n,) as indices: in every group of 2^level b entries the half blocks (size b/2) of even number come first."""
    if level == 0:
        return torch.arange(n)
    half = torch.arange(n).view(n // (b << level), 1 << level, 2, b // 2)
    return half.transpose(1, 2).flatten()


@method(paper="arXiv:2311.06243", start="rounding", claims=("a dense rotation with fewer parameters than OFT's",))
class BOFT(Method):
    """W' = diag(s) W Rᵀ, R = (P_f O_f P_fᵀ) … (P_1 O_1 P_1ᵀ), y = W' x + b0; a row x becomes x R. f = `factors`, b = `block_size`.

    O_i: n/b rotations (I - K)(I + K)⁻¹ of size b on the diagonal, K = (D - Dᵀ) / 2; P_i, frozen, is a permutation that hands
    half blocks on, so that f = log2(n/b) + 1 factors make R dense. D (f, n/b, b, b) and s (m,) trained.
    Start: D = 0, s = 1, the base's first output up to rounding. Count: f n b + m, of which the symmetric part of D does nothing.
    f n b operations a token. Exact, but not low-rank; R keeps the singular values of W, s does not.
    Source: Liu et al. 2023; layout, permutations and defaults as in HF PEFT.
    Trap: s scales W x, not the bias. PEFT without its CUDA kernel silently uses f = 1.

    >>> from deltaw.methods import BOFT
    >>> {k: v.shape for k, v in BOFT(factors=2).params(10, 16).items()}
    {'D': (2, 4, 4, 4), 's': (10,)}
    """

    block_size: int = 4
    factors: int = 1

    def params(self, m: int, n: int) -> Declared:
        positive(block_size=self.block_size, factors=self.factors)
        f, b = self.factors, self.block_size
        if b < 2 or (f > 1 and b % 2):
            raise SpecError(f"boft needs blocks of at least 2, of even size with more than one factor; block_size = {b}")
        divides(f"block_size · 2^(factors - 1) = {b} · 2^{f - 1}", b << (f - 1), n=n)
        return {"D": Param((f, n // b, b, b)), "s": Param((m,), ones)}

    def weight(self, W: Op, p: Tensors) -> Op:
        n, parts = W.shape[1], [W]
        for level in range(self.factors):  # Rᵀ = (P_1 O_1ᵀ P_1ᵀ) … (P_f O_fᵀ P_fᵀ)
            X: Op = BlockDiag(cayley((p.D[level] - p.D[level].mT) / 2).mT)
            if level:
                order = butterfly(n, self.block_size, level).to(p.D.device)
                X = chain(Pick(order, n, p.D), X, Pick(order.argsort(), n, p.D))
            parts.append(Eye(n, p.D) + X)
        return chain(p.s, *parts)
