"""LoReFT: an edit of hidden states inside a learned subspace."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, method, uniform


def columns(U: Tensor) -> Tensor:
    """The orthonormal basis of U's columns (QR); positive on the diagonal of the triangle, so that it is continuous."""
    Q, T = torch.linalg.qr(U)
    return Q * torch.where(T.diagonal() < 0, -1.0, 1.0).to(Q.dtype)


@method(
    paper="arXiv:2404.03592",
    start="none: Wp and c start like a linear layer's, as in pyreft; Wp = Rᵀ with c = 0 would be the identity",
    claims=("10 to 50 times fewer parameters than strong PEFT methods at comparable quality",),
)
class ReFT(Method):
    """h' = h + R (Wp h + c - Rᵀ h), h the output of a block, at every position. R (d, r) with RᵀR = I; LoReFT.

    Trained: U (d, r), of which R = the Q of U = QT with T's diagonal positive, so RᵀR = I holds after every step;
    Wp (r, d), c (r,). Start: U orthonormal, Wp and c ~ U(±1/sqrt d). Trainable per block: 2 d r + r. 2 d r operations a token.
    Affine in h, so several adapters add up; no weight equals it, so it does not merge.
    `Plan(ReFT())` edits every block; name blocks by targets or layers. Source: Wu et al. 2024, equation 2.
    Trap: pyreft edits the first and last prompt tokens only, and drops out the whole edited state, not the edit.

    >>> from deltaw.methods import ReFT
    >>> {k: p.shape for k, p in ReFT(r=2).params(6, 6).items()}
    {'U': (6, 2), 'Wp': (2, 6), 'c': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.r <= n:
            raise ShapeError(f"reft needs 1 <= r <= {n}, the width of the hidden state; found r = {self.r}")

        def basis(start: Start, shape: tuple[int, ...]) -> Tensor:
            return columns(start.normal(shape, 1.0))

        return {"U": Param((n, self.r), basis), "Wp": Param((self.r, n), kaiming), "c": Param((self.r,), uniform(n**-0.5))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        R = columns(p.U)
        move = (R * p.c).sum(1)
        return Affine(L.op + chain(R, p.Wp - R.mT), move if L.bias is None else L.bias + move)
