"""DiLoCo that does not wait: the workers' sum travels while the next phase is computed."""

from __future__ import annotations

from typing import ClassVar

from ..outer import PhasedUpdate
from . import update


@update(paper="arXiv:2502.12996")
class DiLoCoEager(PhasedUpdate):
    """As `diloco`, but worker k moves at once by d_k^t = delta_k^t / K + (mean_j delta_j^(t-1) - delta_k^(t-1) / K): its own fresh share
    and the others' of the phase before, whose all-reduce ran meanwhile (nothing of them in phase 0).

    Every delta_k^t counts once in every worker. K = 1 is DiLoCo. `optimizer.outer`: `waited` (seconds that a sum was not
    there yet) and `took` (seconds that sums were on their way). Source: Kale et al. 2025; the mixing is theirs, its
    coefficients our reading. Trap: workers hold different theta: an evaluation is of one of them; the last phase's share of
    the others never arrives.
    """

    inner: object = "adamw"
    every: int = 500
    outer_lr: float = 0.7
    momentum: float = 0.9
    eager: ClassVar[bool] = True
