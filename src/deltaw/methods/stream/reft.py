"""LoReFT: an edit of hidden states inside a learned subspace."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, uniform
from ..orthonormal import basis, columns, room


@method(
    paper="arXiv:2404.03592",
    start="none: Wp and c start like a linear layer's, as in pyreft; Wp = Rᵀ with c = 0 would be the identity",
    claims=("15 to 65 times fewer parameters than LoRA, at the best balance of cost and quality",),
)
class ReFT(Method):
    """h' = h + R (Wp h + c - Rᵀ h), h the output of a block, at every position. R (d, r) with RᵀR = I; LoReFT.

    Trained: U (d, r), of which R = the Q of U = QT with T's diagonal positive, so RᵀR = I holds after every step;
    Wp (r, d), c (r,). Start: U orthonormal, Wp and c ~ U(±1/sqrt d). Trainable per block: 2 d r + r. 2 d r operations a token.
    Affine in h, so several adapters add up; no weight equals it, so it does not merge.
    `Plan(ReFT())` edits every block; name blocks by targets or layers. Source: Wu et al. 2024.
    Trap: pyreft edits the first and last prompt tokens only: that is At(ReFT(), positions="f1+l1"); it drops out the
    whole edited state, not the edit.

    >>> from deltaw.methods import ReFT
    >>> {k: p.shape for k, p in ReFT(r=2).params(6, 6).items()}
    {'U': (6, 2), 'Wp': (2, 6), 'c': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        room("reft", self.r, n)
        return {"U": Param((n, self.r), basis), "Wp": Param((self.r, n), kaiming), "c": Param((self.r,), uniform(n**-0.5))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        R = columns(p.U)
        move = (R * p.c).sum(1)
        return Affine(L.op + chain(R, p.Wp - R.mT), move if L.bias is None else L.bias + move)
