"""PMSS: a small matrix between chosen columns and rows of W."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..frames import fits, pivoted_qr


@method(paper="arXiv:2409.16722", claims=("high-rank updates with fewer parameters than LoRA, better on reasoning tasks",))
class PMSS(Method):
    """W' = W + s C M R, y = W' x + b. M (r, r) trained; frozen C = W[:, J] (m, r), R = W[I, :] (r, n): W's skeleton.

    J and I (r,) are stored too. Start: M = 0, the base's first output; M learns at once, dL/dM = s Cᵀ G Rᵀ.
    Count: r². Exact LoRA rank: r. r (m + n + r) operations a token, so r can be several times LoRA's.
    Source: Wang et al. 2024, of which only the abstract could be read ("selecting skeletons from the pre-trained weight
    and only learning a small matrix"). Readings: J are the first pivots of a QR decomposition of W with column
    pivoting, I those of Wᵀ; M starts at zero; the skeletons keep their norms, so s = `scale` is a plain number.
    Trap: C and R are slices of the base that was trained on: they are not read again from a merged one.

    >>> from deltaw.methods import PMSS
    >>> [(k, p.shape) for k, p in PMSS(r=4).params(10, 6).items() if p.train]
    [('M', (4, 4))]
    """

    r: int = 128
    scale: float = 1.0

    def params(self, m: int, n: int) -> Declared:
        fits("r", self.r, m, n)

        def pivots(of_rows: bool) -> Param:
            def chosen(start: Start, _: tuple[int, ...]) -> Tensor:
                W = start.dense()
                return pivoted_qr(W.mT if of_rows else W, self.r)[2]

            return Param((self.r,), last(chosen), train=False, dtype=torch.int64)

        return {
            "M": Param((self.r, self.r)),
            "J": pivots(False),
            "I": pivots(True),
            "C": Param((m, self.r), last(lambda start, _: start.dense()[:, start.p.J]), train=False),
            "R": Param((self.r, n), last(lambda start, _: start.dense()[start.p.I]), train=False),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.C, p.M, p.R)
