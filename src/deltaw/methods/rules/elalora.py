"""ElaLoRA: terms change hands: the worst of all sites are dropped, and the sites with the best of those get new ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import slots
from ..rank import allocators, budgets
from . import Rule, rule


@rule(paper="arXiv:2504.00254")
class ElaLoRA(Rule):
    """Scores as in the rule adalora, after every step t < T - t_f. Every `every` steps after t_i: each site puts its min(k, r - 1) lowest
    terms into a pool; the b lowest of the pool are dropped, the owners of the b highest grow by one each, b = round(b0 (1 - p³)),
    p = (t - t_i) / (T - t_f - t_i). A new row of A and column of B are random, orthogonal to the site's others, of length 1; its
    gate is min(min |g|, 1e-13). The total rank stays; kept terms keep their moments and counts (update slot_adamw), new ones start anew.

    Loss: + orth_reg_weight times the mean over the factors of |A Aᵀ - I|_F. Memory: I, U. Source: Chang et al. 2025 and its code.
    Readings: moments are kept (their trainer loses all of them); orthogonal by QR. Trap: a site may lose and win a term at once; no DDP.
    """

    b0: int = 4
    k: int = 2
    every: int = 50
    t_i: float = 0.1
    t_f: float = 0.25
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1
    T: int = 0

    allocates, update = True, "slot_adamw"

    def start(self, view: Any) -> dict[str, Tensor]:
        self.span(view)
        return slots.remembered(view)

    def span(self, view: Any) -> tuple[int, int]:
        """t_i and T - t_f, given as parts of T."""
        T = int(self.T or view.total)
        return round(self.t_i * T), round((1 - self.t_f) * T)

    def before_all(self, views: list[Any]) -> None:
        slots.orthogonalise(views, self.orth_reg_weight)

    def after_all(self, views: list[Any]) -> None:
        t, (begin, end) = views[0].step - 1, self.span(views[0])
        if t >= end:
            return
        slots.listen(views, self.beta1, self.beta2)
        count = budgets.swaps(self.b0, budgets.part(t, begin, end)) if t > begin and t % self.every == 0 else 0
        drop, grow = allocators.swap(slots.sensitive(views), count, self.k) if count else ({}, {})
        for v in views:
            if v.name in drop or v.name in grow:
                slots.exchange(v, [i for i in range(slots.count(v)) if i not in drop.get(v.name, [])], grow.get(v.name, 0))
        if count:
            views[0].tell(f"elalora: {sum(map(len, drop.values()))} terms went from {len(drop)} sites to {len(grow)}")
