"""rsLoRA: LoRA with the rank-stabilised scale."""

from __future__ import annotations

import math

from ...ops import Op, chain
from ...spec import Declared, Method, Tensors, method
from ..factors import pair


@method(paper="arXiv:2312.03732", claims=("output and gradient norms stay O(1) in r, so a larger r keeps helping",))
class RsLoRA(Method):
    """y = W x + b + s B A x, s = alpha / sqrt(r); tensors, start and count as in LoRA.

    Source: Kalajdzievski 2023. Trap: at r = 16 the same alpha gives 4x LoRA's scale; lower the learning rate or alpha.

    >>> from deltaw.methods import RsLoRA
    >>> RsLoRA(r=16, alpha=8.0).scale
    2.0
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / math.sqrt(self.r)

    def params(self, m: int, n: int) -> Declared:
        return pair(m, n, self.r)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A)
