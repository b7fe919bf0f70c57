"""Bayesian-LoRA: gates that learn which terms, and how many bits of the factors, are needed."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, constant, kaiming, method
from ..factors import positive
from ..hard_gates import decided, hard_concrete, opened, residual


@method(paper="arXiv:2406.13046", start="rounding", claims=("70 % fewer bit operations than AdaLoRA at equal quality",))
class BLoRA(Method):
    """y = W x + b + s B_q diag(z) A_q x, s = alpha / r; B_q, A_q quantised by `residual` with gates for 4, 8, 16, 32 bits, z (r,) gates of the
    terms. B (m, r), A (r, n), phi (r,), phi_B, phi_A (4,) trained; u, the noise of a step, is drawn by the rule b_lora, which also adds the
    expected bits and terms to the loss. In evaluation gates are 0 or 1.

    A reading: the paper builds on Bayesian Bits, whose quantiser and gates these are; how it gates slots and weighs the terms is ours. Start:
    B = 0, gates open: the base's first output. Count: r (m + n + 1) + 8. Exact LoRA rank: r. Source: Meo et al. 2024. Trap: gates are nested:
    those of 8 bits mean nothing when those of 4 are shut.

    >>> from deltaw.methods import BLoRA
    >>> {k: p.shape for k, p in BLoRA(r=4).params(10, 8).items()}["u"]
    (12,)
    """

    r: int = 8
    alpha: float = 16.0
    lam_bits: float = 1e-4
    lam_rank: float = 1e-3

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        gates = {"phi": Param((self.r,), constant(6.0)), "phi_B": Param((4,), constant(6.0)), "phi_A": Param((4,), constant(6.0))}
        half = constant(0.5)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), **gates, "u": Param((self.r + 8,), half, train=False, ruled=True)}

    def weight(self, W: Op, p: Tensors) -> Op:
        three = (p.phi, p.phi_B, p.phi_A)
        noise = p.u.clamp(1e-6, 1 - 1e-6).split([self.r, 4, 4])
        z, z_B, z_A = (hard_concrete(f, u) if p.training else decided(f) + opened(f) - opened(f).detach() for f, u in zip(three, noise))
        return W + (self.alpha / self.r) * chain(residual(p.B, z_B), z, residual(p.A, z_A))

    def live(self, p: Tensors) -> int:
        return int(decided(p.phi).sum())

    def rules(self) -> tuple[Any, ...]:
        return (RULES["b_lora"](self.lam_bits, self.lam_rank),)

