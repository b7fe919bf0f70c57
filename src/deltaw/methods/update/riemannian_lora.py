"""Riemannian preconditioned LoRA: each factor's gradient through the inverse Gram matrix of the other."""

from __future__ import annotations

from . import update
from .algebra import Adam
from .algebra.pair import Factor, Pair, PairUpdate


@update(paper="arXiv:2402.02347")
class RiemannianLoRA(PairUpdate):
    """g_A = s⁻² (BᵀB + delta I)⁻¹ dL/dA, g_B = s⁻² dL/dB (A Aᵀ + delta I)⁻¹, both with the factors before the step; AdamW on them.

    With plain SGD and delta -> 0 the weight moves by -lr (P_B G + G P_A) to first order, whatever basis A and B are in. State: Adam's,
    2 r (m + n). Source: Zhang & Pilanci 2024; as in HF PEFT's `create_riemannian_optimizer`, which leaves out s⁻² (a constant, so
    Adam hides it) and factors at embeddings, as we do. Trap: Adam looks at single entries, so it is not invariant to the basis.
    """

    delta: float = 1e-2
    weight_decay: float = 0.0

    def rule(self, s: float) -> Pair:
        return Pair(Factor(1.0, self.delta, s), Adam(), order="joint")

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r)."""
        return 2 * r * (m + n)
