"""DiaBlo: only the diagonal blocks of the weight are trained."""

from __future__ import annotations

import torch

from ...ops import BlockDiag, Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import positive
from ..pick import Pick


@method(paper="arXiv:2506.03230", claims=("competitive at LoRA's memory and speed, without a special start or optimiser",))
class DiaBlo(Method):
    """W' = W + diag(D_1ᵀ … D_Kᵀ) cut to m x n; D (K, bi, bo), bi = n / N and bo = m / N rounded up.

    K = max(n / bi, m / bo), rounded up: N where N divides both. One batched product, K bi bo operations a token.
    Start: D = 0, the base's first output, and D has a gradient at once. Count: K bi bo, about m n / N. The update can
    have full rank, so no plain LoRA equals it. Source: Gurses et al. 2025 and the authors' code.
    Trap: a block is stored (in, out). Where N does not divide, x is padded and y cut, K may differ from N, and blocks
    past the end of x or y are dead.

    >>> from deltaw.methods import DiaBlo
    >>> [DiaBlo(N=N).params(10, 6)["D"].shape for N in (2, 4)]
    [(2, 3, 5), (4, 2, 3)]
    """

    N: int = 64

    def params(self, m: int, n: int) -> Declared:
        positive(N=self.N)
        bi, bo = -(-n // self.N), -(-m // self.N)
        return {"D": Param((max(-(-n // bi), -(-m // bo)), bi, bo))}

    def weight(self, W: Op, p: Tensors) -> Op:
        D: Op = BlockDiag(p.D.mT)
        for axis, size in enumerate(W.shape):
            if D.shape[axis] != size:
                cut = Pick(torch.arange(size, device=p.D.device), D.shape[axis], p.D)
                D = chain(D, cut.T) if axis else chain(cut, D)
        return W + D
