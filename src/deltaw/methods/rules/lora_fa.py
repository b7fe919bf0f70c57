"""LoRA-FA's gradient: the step of B that brings B A closest to a step of the whole weight."""

from __future__ import annotations

from ...errors import SpecError
from ...spec import scale_of
from ..update.algebra.pair import Factor
from . import Rule, View, rule


@rule(paper="arXiv:2308.03303")
class ProjectedGradient(Rule):
    """dL/dB <- s⁻² dL/dB (A Aᵀ + delta I)⁻¹ before every step, for W' = W + s B A with a frozen A.

    With plain SGD the weight then moves by -lr G Aᵀ (A Aᵀ)⁻¹ A, G = dL/dW': the gradient projected on A's rows, whatever
    A's size and s: B in the frame of A, Sub(factor_A(1), inner), where the inner optimiser is the plan's update (HF PEFT's
    `create_lorafa_optimizer` has AdamW). A rule and no update rule, as those are given the trained tensors and A is none of them.
    """

    delta: float = 1e-8

    def before(self, view: View) -> None:
        A, B = (getattr(view.p, k, None) for k in "AB")
        if A is None or B is None or A.requires_grad or B.shape[1] != A.shape[0]:
            raise SpecError(f"{view.name}: the projected gradient is for W + s B A with a frozen A; found {view.method}")
        if B.grad is not None:
            frame, G = Factor(1.0, self.delta, scale_of(view.method)), B.grad.mT
            B.grad.copy_(frame.down(frame.refresh(G, A.mT, None), G).mT)
