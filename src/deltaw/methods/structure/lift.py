"""LIFT: train the largest entries of the low-rank part of W, and choose them again as W changes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, int64

from ...errors import ShapeError
from ...ops import Op
from ...spec import RULES, Declared, Method, Param, Start, Tensors, last, method
from ..sparse import Sparse, low_rank, top, with_past


@method(paper="arXiv:2506.00772", claims=("beats full fine-tuning on reasoning with 5 % of the weights, forgets less",))
class LIFT(Method):
    """W' = W + scatter(I, v) + scatter(I0, v0): I (K,) are the K largest entries of W_f, the best rank-f approximation.

    v (K,) trained, K = min(k (m + n), m n). Every `every` steps I is chosen again from the W' of that moment: entries that
    stay keep value and moments, new ones start with zero moments, those that leave go on in the frozen past (I0, v0),
    empty at first. Start: v = 0, the base's first output. No plain LoRA equals it.
    Source: Liu et al. 2025. Traps: the paper trains W in place, so its weight decay decays W[I], ours only the change; its
    released scripts select the smallest entries of W_f by a misspelt word, the paper, and this, the largest.

    >>> from deltaw.methods import LIFT
    >>> LIFT(k=2).params(10, 6)["v"].shape
    (32,)
    """

    k: int = 128
    f: int = 64
    every: int = 200

    def params(self, m: int, n: int) -> Declared:
        if min(self.k, self.f, self.every) < 1:
            raise ShapeError(f"k, f and every must be positive; found {self.k}, {self.f}, {self.every}")
        K = min(self.k * (m + n), m * n)

        def where(start: Start, _: tuple[int, ...]) -> Tensor:
            return self.chosen(start.dense(), K)

        return {
            "v": Param((K,)),
            "I": Param((K,), last(where), train=False, dtype=int64),
            "I0": Param((0,), train=False, dtype=int64, free=0),
            "v0": Param((0,), train=False, free=0),
        }

    def chosen(self, w: Tensor, K: int) -> Tensor:
        return top(low_rank(w, self.f).abs(), K)

    def weight(self, W: Op, p: Tensors) -> Op:
        return with_past(W, Sparse(p.I, p.v, W.shape), p.I0, p.v0)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["reselect"](self.every),)
