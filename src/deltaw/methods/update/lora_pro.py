"""LoRA-Pro: Adam on the whole weight's gradient as far as the two factors can follow it."""

from __future__ import annotations

from typing import Literal

from . import update
from .algebra import Adam
from .algebra.pair import PairUpdate
from .algebra.tangent import Tangent


@update(paper="arXiv:2407.18242")
class LoRAPro(PairUpdate):
    """D = Adam(P_B G + G P_A - P_B G P_A), m x n; the step of A and B is the tangent part of D, in the gauge X of smallest change.

    G is never formed: its tangent part follows from dL/dA and dL/dB. To first order W' moves by -lr (P_B D + D P_A - P_B D P_A). State:
    two moments of the size of W, 2 m n. Source: Wang et al. 2024; as in their code, with the layer's own s where theirs is 2 in every
    run. Their code raises its counter before the first adjustment, so that its branch for B = 0 never runs and bias correction
    starts at step 2; here it starts at 1, and B = 0 needs no branch. Trap: the memory of full Adam on every adapted layer.
    """

    gauge: Literal["sylvester", "zero", "symmetric"] = "sylvester"
    delta: float = 1e-8
    weight_decay: float = 0.0

    def rule(self, s: float) -> Tangent:
        return Tangent(Adam(), s, self.delta, self.gauge)

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r)."""
        return 2 * m * n
