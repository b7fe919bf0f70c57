"""LoBiReFT: a constant added to hidden states inside a learned subspace."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Tensors, method, uniform
from ..orthonormal import basis, columns, room


@method(paper="arXiv:2404.03592", start="none: R is random and c starts in [-1, 1]; c = 0 would be the identity")
class LoBiReFT(Method):
    """h' = h + R c, h the output of a block, at every position. R (d, r) with RᵀR = I, c (r,).

    Trained: U (d, r), of which R = the Q of U = QT with T's diagonal positive; c. Start: U orthonormal, c ~ U(±1).
    Trainable per block: d r + r; d additions a token. It moves a bias and no weight, so no LoRA equals it.
    `Plan(LoBiReFT())` edits every block; prompt positions: At(LoBiReFT(), positions="f1+l1").
    Source: "Lobireft" of pyreft, by Wu et al. 2024 (there c starts in [0, 1)).
    Trap: the edit is one vector however large r is; R only shapes how it is trained.

    >>> from deltaw.methods import LoBiReFT
    >>> {k: p.shape for k, p in LoBiReFT(r=2).params(6, 6).items()}
    {'U': (6, 2), 'c': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        room("lobireft", self.r, n)
        return {"U": Param((n, self.r), basis), "c": Param((self.r,), uniform(1.0))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        move = (columns(p.U) * p.c).sum(1)
        return Affine(L.op, move if L.bias is None else L.bias + move)
