"""RoseLoRA: LoRA with sparse rows of A and sparse columns of B."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Tensors, method
from ..factors import pair
from ..rules.row_sparsity import RowSparsity


@method(paper="arXiv:2406.10777", claims=("edits knowledge with less damage around it, tunes well with 5 % of the entries",))
class RoseLoRA(Method):
    """y = W x + b + s B A x, s = alpha / r; A (r, n) and B (m, r) trained, most of their entries held at zero by a rule.

    After each step a row of A keeps n - floor(n (1 - kappa)) + 1 of its entries, a column of B as many of m: the largest
    averages of |entry · gradient|; kappa falls from 1 at step t_i to its value at t_f. So at most a fraction
    sum_i (1 - sp(A_i))(1 - sp(B_i)) of the change is not zero, sp the fraction of zeros. Start as LoRA: the base's first
    output. Trained per site: r (m + n). Exact LoRA rank: r. Source: Wang et al. 2024; defaults of its knowledge editing.
    Trap: B = 0 makes every score of B equal at first, so do not prune from step 1 on.

    >>> from deltaw.methods import RoseLoRA
    >>> RoseLoRA(r=4).rules()
    (RowSparsity(kappa=0.05, t_i=3, t_f=20, beta=0.8),)
    """

    r: int = 8
    alpha: float = 32.0
    kappa: float = 0.05
    t_i: int = 3
    t_f: int = 20
    beta: float = 0.8

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        if not (0.0 < self.kappa <= 1.0 and 0 <= self.t_i <= self.t_f and 0.0 <= self.beta < 1.0):
            raise SpecError(f"roselora needs 0 < kappa <= 1, t_i <= t_f and 0 <= beta < 1; found {self}")
        return pair(m, n, self.r)

    def rules(self) -> tuple[Any, ...]:
        return (RowSparsity(kappa=self.kappa, t_i=self.t_i, t_f=self.t_f, beta=self.beta),)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A)
