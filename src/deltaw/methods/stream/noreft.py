"""NoReFT: LoReFT without orthogonality."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, uniform
from ..orthonormal import room


@method(
    paper="arXiv:2404.03592",
    start="none: W1, W2 and c start like a linear layer's, as in pyreft; W1 = W2 with c = 0 would be the identity",
)
class NoReFT(Method):
    """h' = h + W2ᵀ (W1 h + c - W2 h), h the output of a block, at every position. W1, W2 (r, d), c (r,), all trained.

    Start: W1, W2 and c ~ U(±1/sqrt d). Trainable per block: 2 d r + r; 2 d r operations a token. Affine in h, does not merge.
    `Plan(NoReFT())` edits every block; prompt positions: At(NoReFT(), positions="f1+l1").
    Source: Wu et al. 2024; "Noreft" of their pyreft. The letters are ours.
    Trap: W2 is the projection that is subtracted, and its own transpose writes back: one tensor, two uses.

    >>> from deltaw.methods import NoReFT
    >>> {k: p.shape for k, p in NoReFT(r=2).params(6, 6).items()}
    {'W1': (2, 6), 'W2': (2, 6), 'c': (2,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        room("noreft", self.r, n)
        return {
            "W1": Param((self.r, n), kaiming), "W2": Param((self.r, n), kaiming), "c": Param((self.r,), uniform(n**-0.5))
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        move = (p.W2 * p.c[:, None]).sum(0)
        return Affine(L.op + chain(p.W2.mT, p.W1 - p.W2), move if L.bias is None else L.bias + move)
