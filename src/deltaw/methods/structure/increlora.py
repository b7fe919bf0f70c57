"""IncreLoRA: a gated bank that grows where the update matters most."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, constant, method, normal, zeros
from ..banks import SLOTS, bank
from ..factors import positive


@method(
    paper="arXiv:2308.12043",
    start="none: the reserve has gates of 1e-5",
    claims=("better than pruning at low budgets: no site's rank has a cap",),
)
class IncreLoRA(Method):
    """y = W x + b0 + alpha / (R + 1e-5) (B diag(c) A + B_r diag(c_r) A_r) x. B (m, R), c (R,), A (R, n) trained, R = r at first; the
    reserve B_r (m, q), A_r (q, n) is trained ahead of its use under frozen gates c_r = 1e-5, q = max(1, target_r // 2).

    Start: A, B ~ N(0, 0.02²), c = 0: 1e-5 times a random update away from the base. The rule increlora (see there) lets the sites with
    the highest scores take their reserve over, up to target_r a site on average: adapted.optimizer(lr, steps=N). Count: (R + q) (m + n) + R.
    Exact LoRA rank: R + q until growth is over, then R. Source: Zhang et al. 2023 and its code.
    Trap: s falls as R grows; B is rescaled then, so that the output does not jump (the code lets it).

    >>> from deltaw.methods import IncreLoRA
    >>> {k: p.shape for k, p in IncreLoRA(target_r=4).params(10, 8).items()}["A_r"]
    (2, 8)
    """

    r: int = 1
    alpha: float = 32.0
    target_r: int = 8
    h: int = 3
    every: int = 100
    warmup: int = 100
    orth_reg_weight: float = 0.1

    slots = SLOTS

    def params(self, m: int, n: int) -> Declared:
        positive(target_r=self.target_r, h=self.h)
        q, start = max(1, self.target_r // 2), normal(0.02)
        return {
            **bank(m, n, self.r, B=start, c=zeros, A=start),
            "B_r": Param((m, q), start), "A_r": Param((q, n), start), "c_r": Param((q,), constant(1e-5), train=False, ruled=True),
            "R": Param((), constant(float(self.r)), train=False, ruled=True),
        }  # fmt: skip

    def weight(self, W: Op, p: Tensors) -> Op:
        s = self.alpha / (p.R + 1e-5)
        return W + chain(p.B, s * p.c, p.A) + chain(p.B_r, s * p.c_r, p.A_r)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["increlora"](self.target_r, self.h, self.every, self.warmup, self.orth_reg_weight),)
