"""ConsReFT: hidden states set to a constant inside a learned subspace."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Tensors, method, uniform
from ..orthonormal import basis, columns, room


@method(
    paper="arXiv:2404.03592",
    start="none: R is random and c starts in [-1, 1]; what h had in the subspace is gone at once",
)
class ConsReFT(Method):
    """h' = h + R (c - Rᵀ h), h the output of a block, at every position. R (d, r) with RᵀR = I, c (r,): Rᵀ h' = c.

    Trained: U (d, r), of which R = the Q of U = QT with T's diagonal positive; c. Start: U orthonormal, c ~ U(±1).
    Trainable per block: d r + r; 2 d r operations a token. Affine in h, does not merge.
    `Plan(ConsReFT())` edits every block; prompt positions: At(ConsReFT(), positions="f1+l1").
    Source: "Consreft" of pyreft, by Wu et al. 2024 (there c starts in [0, 1)).
    Trap: with r = d the hidden state is replaced altogether.

    >>> from deltaw.methods import ConsReFT
    >>> {k: p.shape for k, p in ConsReFT(r=2).params(6, 6).items()}
    {'U': (6, 2), 'c': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        room("consreft", self.r, n)
        return {"U": Param((n, self.r), basis), "c": Param((self.r,), uniform(1.0))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        R = columns(p.U)
        move = (R * p.c).sum(1)
        return Affine(L.op + chain(R, -R.mT), move if L.bias is None else L.bias + move)
