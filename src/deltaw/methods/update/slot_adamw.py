"""AdamW that counts the steps of every rank-one term for itself: what rules that add terms need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from . import NOTHING, About, update
from .algebra import Plain, SubOptimizer, Unit
from .algebra.vectors import Vectors

AXES = {"B": 1, "A": 0}  # of factors of which nothing else is known


@update(paper="arXiv:1711.05101")
class SlotAdamW:
    """torch's AdamW, where every rank-one term (a column of B, a row of A, a gate) has its own step count t in 1 - beta^t.

    Without a rule that adds terms it is AdamW. A term that is added to a run at step 1000 starts with moments of 0; under the
    common count its first step would be (1 - beta1) / sqrt(1 - beta2) = 3.16 times the rate, here it is 1 time. Which tensors
    have terms, and along which axis, their methods say (`Method.slots`); what is no such tensor: AdamW. State: two moments and a
    count a term. A rule that adds terms asks for it where the plan says AdamW. Source: a reading of Adam (Kingma, Ba 2015) for
    parameters that come later; no paper of this family says what it does with the count.

    >>> from deltaw.methods.update import SlotAdamW
    >>> SlotAdamW().floats(10, 6, 4)
    136
    """

    weight_decay: float = 0.0
    pairs: ClassVar[bool] = True

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for the two factors of an m x n matrix."""
        return 2 * r * (m + n) + 2 * r

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> SubOptimizer:
        axis = {k: about.slots.get(k, AXES.get(k.rpartition(".")[2]) if p.dim() == 2 else None) for k, p in named.items()}
        units = [Unit(k, Plain() if (a := axis[k]) is None else Vectors(a), {"W": p}) for k, p in named.items()]
        return SubOptimizer(named, units, lr, **{"weight_decay": self.weight_decay, **kw})
