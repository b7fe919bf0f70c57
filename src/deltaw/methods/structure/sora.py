"""SoRA: a bank whose gates are thresholded to exact zeros."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Tensors, method, normal
from ..banks import SLOTS, bank


@method(paper="arXiv:2311.11696", claims=("70 % of LoRA's parameters at an equal or better score",))
class SoRA(Method):
    """y = W x + b + s B diag(c) A x, s = alpha / r. B (m, r), c (r,), A (r, n) trained.

    Start: A ~ U(±1/sqrt n), B = 0, c ~ N(0, 1): the base's first output. The rule sora thresholds c after every step, by lambda2, and
    adds lam times the mean |c| to the loss; gates that reach 0 may come back. Count: r (m + n + 1), of which nnz(c) / r is in use.
    Exact LoRA rank: r. Source: Ding et al. 2023 and its code (lam 10, lambda2 3e-4). Trap: the threshold is not multiplied by the rate (as in
    the main code), so how sparse it gets depends on the number of steps; plan no weight decay for c.

    >>> from deltaw.methods import SoRA
    >>> {k: p.shape for k, p in SoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'c': (4,), 'A': (4, 8)}
    """

    r: int = 8
    alpha: float = 16.0
    lam: float = 10.0
    lambda2: float = 3e-4
    ladder: tuple[float, ...] = ()

    slots = SLOTS

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        return bank(m, n, self.r, c=normal(1.0))

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.c, p.A)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["sora"](self.lam, self.lambda2, self.ladder),)
