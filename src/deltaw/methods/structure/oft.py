"""OFT: the input is rotated block by block."""

from __future__ import annotations

import math

import torch

from ...errors import SpecError
from ...ops import BlockDiag, Eye, Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..cayley import cayley, neumann, skew
from ..factors import divides


@method(paper="arXiv:2306.07280", claims=("keeps the angles between neurons; version 2 is as fast as LoRA on quantised bases",))
class OFT(Method):
    """W' = W diag(R_1..R_k)ᵀ, k = n / b, b = `block_size`: block x_i of the input becomes x_i R_i (a row). y = W' x + b0.

    q (k, b(b-1)/2) trained, the entries of skew Q_i above the diagonal; `share`: (1, …), one block for all.
    terms = 0: R_i = (I - Q_i)(I + Q_i)⁻¹. terms = t >= 4: R_i = I + 2 Q_i + … + 2 Q_i^(t-2) + Q_i^(t-1), which is near
    (I + Q_i)(I - Q_i)⁻¹ and needs no solve. eps (COFT): Q_i acts as its projection on |Q_i|_F <= eps / sqrt(k), with the
    gradient at the projection; q itself is free, so the optimiser's steps are not cut.
    Start: q = 0, the base's first output, bit for bit. Count: n (b - 1) / 2. n b operations a token before W, which may stay
    quantised. Exact, but not low-rank. Singular values of W are kept.
    Source: Qiu et al. 2023; the series and the input side are OFTv2 (arXiv:2506.19847); defaults as in HF PEFT.
    Trap: terms = 0 and terms > 0 rotate in opposite senses, so a trained q is of one of them. Never an eigenvalue -1.

    >>> from deltaw.methods import OFT
    >>> OFT(block_size=4).params(10, 8)["q"].shape, OFT(block_size=4, share=True).params(10, 8)["q"].shape
    ((2, 6), (1, 6))
    """

    block_size: int = 32
    terms: int = 5
    share: bool = False
    eps: float | None = None

    def params(self, m: int, n: int) -> Declared:
        if self.block_size < 2 or self.terms in (1, 2, 3) or self.terms < 0 or (self.eps is not None and not self.eps > 0):
            raise SpecError(f"oft needs block_size >= 2, terms of 0 or at least 4, eps None or > 0; found {self}")
        divides("block_size", self.block_size, n=n)
        k = 1 if self.share else n // self.block_size
        return {"q": Param((k, self.block_size * (self.block_size - 1) // 2))}

    def weight(self, W: Op, p: Tensors) -> Op:
        Q = skew(p.q, self.block_size)
        if self.eps is not None:
            norm = torch.linalg.matrix_norm(Q.detach(), keepdim=True).clamp_min(torch.finfo(Q.dtype).tiny)
            cut = Q.detach() * (self.eps / math.sqrt(len(Q)) / norm).clamp_max(1.0)
            Q = Q + (cut - Q).detach()  # the value of one, the gradient of the other
        X = neumann(Q, self.terms) if self.terms else cayley(Q)
        n = W.shape[1]
        return chain(W, Eye(n, X) + BlockDiag(X.mT.expand(n // self.block_size, -1, -1)))
