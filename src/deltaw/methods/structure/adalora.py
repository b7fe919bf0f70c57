"""AdaLoRA's structure: a delta in the form of a singular value decomposition."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, method, normal
from ..factors import positive


@method(paper="arXiv:2303.10512", claims=("better than a uniform rank at small budgets (with its schedule)",))
class AdaLoRA(Method):
    """y = W x + b0 + s P diag(E) Q x, s = alpha / (r + 1e-5). P (m, r), E (r,), Q (r, n) trained; rank of the update <= r.

    Start: P, Q ~ N(0, 0.02²), E = 0: the base's first output. Trained per site: r (m + n + 1). Exact LoRA rank: r.
    The rule "adalora" (see there) keeps P and Q near orthonormal and, over the run, gates the least important terms of all sites
    off, down to target_r a site on average; it has to know the run's length: adapted.optimizer(lr, steps=N). A pruned term is an
    E of 0, and s stays that of the first r. target_r >= r prunes nothing. adapted.ranks() counts what lives.
    Source: Zhang et al. 2023; start, scale, schedule and defaults as in HF PEFT (whose init_r is r, whose step count is T = total_step).
    Trap: without the penalty E is no set of singular values. r counts the directions before pruning.

    >>> from deltaw.methods import AdaLoRA
    >>> {k: v.shape for k, v in AdaLoRA(r=4).params(10, 6).items()}
    {'P': (10, 4), 'E': (4,), 'Q': (4, 6)}
    """

    r: int = 12
    alpha: float = 8.0
    target_r: int = 8
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5

    slots = {"P": 1, "E": 0, "Q": 0}

    @property
    def scale(self) -> float:
        return self.alpha / (self.r + 1e-5)

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"P": Param((m, self.r), normal(0.02)), "E": Param((self.r,)), "Q": Param((self.r, n), normal(0.02))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.P, p.E, p.Q)

    def rules(self) -> tuple[Any, ...]:
        return (
            RULES["adalora"](
                self.target_r, self.tinit, self.tfinal, self.deltaT, self.beta1, self.beta2, self.orth_reg_weight
            ),
        )
