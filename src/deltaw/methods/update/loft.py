"""LoFT: Adam on the whole weight, as far as one factor at a time can follow it, in the memory of r x r matrices."""

from __future__ import annotations

from . import update
from .algebra.lifted import AdamGram, MoveGrams
from .algebra.pair import Factor, Pair, PairUpdate


@update(paper="arXiv:2505.21289")
class LoFT(PairUpdate):
    """F = Adam of the entries of P_B G, from M_A (r, n) and one V_j (r, r) a column: F_ij = s b_i M_j / sqrt(s² b_i V_j b_iᵀ); A <- A - lr s⁻¹ B⁺ F.

    Moments follow the factors: M <- R M, V_j <- R V_j Rᵀ, R = B⁺ B_old. One factor moves a step, B first; the moments of both see every
    gradient. With r = min(m, n) it is Adam on W. State: r (m + n) (2 + r). F is made in pieces of 2²² numbers at most, in m n r² products.
    Source: Tastan et al. 2025 and their code, less three things: its transport of V has R and Rᵀ exchanged, so that V is not the
    square of what was transported; its B is seen in the frame of the A just written, of which its gradient is not; its weight decay
    lacks lr. s = 1 there. Trap: eps = 1e-4 is added to what has the size of gradients of W.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-4
    delta: float = 1e-6
    weight_decay: float = 0.0

    def rule(self, s: float) -> Pair:
        return Pair(Factor(1.0, self.delta, s), AdamGram(self.betas, self.eps), MoveGrams(), "alternate")

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r): first moments, previous factors, r x r matrices."""
        return r * (m + n) * (2 + r)
