"""VectorFit: all singular values and the bias are trained."""

from __future__ import annotations

from typing import Any

from ...ops import Affine, Map, Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..frames import singular


@method(paper="arXiv:2503.19530", start="rounding", claims=("a high-rank change from at most 0.1 % of the parameters",))
class VectorFit(Method):
    """W' = U diag(sigma + dsigma) Vᵀ, b' = b + db; U (m, k), Vt (k, n) frozen, k = min(m, n), W = U diag(sigma) Vᵀ.

    Trained: dsigma (k,), and db (m,) where the layer has a bias: the paper adapts the vectors that are there. Applied as
    W x + U (dsigma ⊙ Vᵀ x) + b', which leaves the base's own product alone, for k (m + n) more operations a token.
    Start: both 0, the base up to rounding. Count: k + m. The change has full rank: no plain LoRA equals it.
    Source: Hegde et al. 2025. Adaptive Vector Freezing, its rule between steps, whose settings are not published, is to
    be asked for: Plan(VectorFit(), rules=(AVF(k=5),)) with deltaw.methods.rules.avf.
    Trap: U and Vt are as large as W, so the stored adapter is too; only k + m numbers of it are trained.

    >>> from deltaw.methods import VectorFit
    >>> [(k, p.shape) for k, p in VectorFit().params(10, 6).items() if p.train]
    [('dsigma', (6,)), ('db', (10,))]
    """

    def params(self, m: int, n: int) -> Declared:
        k = min(m, n)
        return {"dsigma": Param((k,)), "db": Param((m,)), **singular("k", k, m, n)}

    def declare(self, site: Any) -> Declared:
        return {k: p for k, p in self.params(*site.shape).items() if k != "db" or site.leaf().bias is not None}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.U, p.dsigma, p.Vt)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Affine(self.weight(L.op, p), L.bias if L.bias is None else L.bias + p.db)
