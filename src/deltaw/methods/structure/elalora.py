"""ElaLoRA: a gated bank whose terms change hands between sites."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Tensors, method, normal, zeros
from ..banks import SLOTS, bank


@method(paper="arXiv:2504.00254", claims=("better than AdaLoRA at an equal budget",))
class ElaLoRA(Method):
    """y = W x + b0 + s B diag(c) A x, s = alpha / (r + 1e-5). B (m, r), c (r,), A (r, n) trained.

    Start: A, B ~ N(0, 0.02²), c = 0: the base's first output. The rule elalora (see there) moves terms from sites where they matter
    least to those where they matter most; the sum of ranks stays r a site. Run it with adapted.optimizer(lr, steps=N). Count: r (m + n + 1) on
    average. Exact LoRA rank: that of the tensors. Source: Chang et al. 2025 and its code (RTE script: r 10, b0 4, k 2, every 50).
    Trap: sizes change in training, which DDP does not allow; s stays that of the first r.

    >>> from deltaw.methods import ElaLoRA
    >>> {k: p.shape for k, p in ElaLoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'c': (4,), 'A': (4, 8)}
    """

    r: int = 8
    alpha: float = 16.0
    b0: int = 4
    k: int = 2
    every: int = 50
    t_i: float = 0.1
    t_f: float = 0.25
    orth_reg_weight: float = 0.1

    slots = SLOTS

    @property
    def scale(self) -> float:
        return self.alpha / (self.r + 1e-5)

    def params(self, m: int, n: int) -> Declared:
        return bank(m, n, self.r, B=normal(0.02), c=zeros, A=normal(0.02))

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.c, p.A)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["elalora"](self.b0, self.k, self.every, self.t_i, self.t_f, orth_reg_weight=self.orth_reg_weight),)
