"""AltLoRA: the best step of one factor, then of the other, with a momentum that follows the moving factors."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import Ema, Move
from .algebra.pair import Factor, Pair, PairUpdate


@update(paper="arXiv:2505.12455")
class AltLoRA(PairUpdate):
    """M_A <- beta R M_A + (1 - beta) s⁻² (BᵀB + delta I)⁻¹ dL/dA, R = (BᵀB + delta I)⁻¹ Bᵀ B_old; A <- A - lr M_A / (1 - betaᵗ). B likewise,
    with the new A.

    s B M_A is the old momentum projected on what B spans now: no basis of A and B is preferred (delta -> 0). State: M_A, M_B, A_old,
    B_old; 2 r (m + n). Source: Yu et al. 2025 and their code, which takes s = 1 for granted; order="turns" is the paper's
    algorithm, one factor and one new gradient a step. Trap: beta = 0.999 is their code's default, a memory of a thousand steps.
    """

    beta: float = 0.999
    delta: float = 1e-3
    order: Literal["sequential", "turns"] = "sequential"
    weight_decay: float = 1e-5

    def rule(self, s: float) -> Pair:
        return Pair(Factor(1.0, self.delta, s), Ema(self.beta), Move(), self.order, decay="after")

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r): momentum and previous factors."""
        return 2 * r * (m + n)
