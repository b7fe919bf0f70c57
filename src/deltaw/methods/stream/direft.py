"""DiReFT: a low-rank edit of hidden states."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, uniform
from ..orthonormal import room


@method(
    paper="arXiv:2404.03592",
    start="none: W1, W2 and b start like a linear layer's, as in pyreft; W2 = 0 would be the identity",
    claims=("an ablation of LoReFT that gives up some quality for efficiency",),
)
class DiReFT(Method):
    """h' = h + W2ᵀ (W1 h + b), h the output of a block, at every position. W1, W2 (r, d), b (r,), all trained.

    Start: W1, W2 and b ~ U(±1/sqrt d). Trainable per block: 2 d r + r; 2 d r operations a token. Affine in h, does not merge.
    `Plan(DiReFT())` edits every block; prompt positions: At(DiReFT(), positions="f1+l1").
    Source: Wu et al. 2024; "Nodireft" of their pyreft.
    Trap: pyreft's own "Direft" is another method: it keeps W2 orthonormal.

    >>> from deltaw.methods import DiReFT
    >>> {k: p.shape for k, p in DiReFT(r=2).params(6, 6).items()}
    {'W1': (2, 6), 'W2': (2, 6), 'b': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        room("direft", self.r, n)
        return {
            "W1": Param((self.r, n), kaiming), "W2": Param((self.r, n), kaiming), "b": Param((self.r,), uniform(n**-0.5))
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        move = (p.W2 * p.b[:, None]).sum(0)
        return Affine(L.op + chain(p.W2.mT, p.W1), move if L.bias is None else L.bias + move)
