"""B-LoRA's noise and its price of bits and terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from ..hard_gates import opened
from . import Rule, rule


@rule(paper="arXiv:2406.13046")
class BLoRA(Rule):
    """Loss: + lam_bits sum over both factors of sum_b b prod_{j <= b} P(z_j > 0), b = 4, 8, 16, 32, + lam_rank sum_i P(z_i > 0), over all
    sites. After step t the noise u of the next one is drawn, from the seed, the site and t. A reading, see the structure; the prior's
    form (expected bits) is that of Bayesian Bits (van Baalen et al. 2020).
    """

    lam_bits: float = 1e-4
    lam_rank: float = 1e-3

    allocates = True

    def before_all(self, views: list[Any]) -> None:
        def loss(free: list[Tensor]) -> Tensor:
            total = free[0].sum() * 0
            for phi, phi_B, phi_A in zip(free[::3], free[1::3], free[2::3]):
                bits = torch.tensor([4.0, 8.0, 16.0, 32.0], dtype=phi.dtype, device=phi.device)
                total = total + self.lam_rank * opened(phi).sum()
                total = total + self.lam_bits * sum((bits * opened(f).cumprod(0)).sum() for f in (phi_B, phi_A))
            return total

        slots.penalise([t for v in views for t in (v.p.phi, v.p.phi_B, v.p.phi_A)], loss)

    def after_all(self, views: list[Any]) -> None:
        for v in views:
            v.set("u", v.draw("u").uniform(tuple(v.p.u.shape), 0.5).add(0.5))
        if views[0].step % 50 == 0 or views[0].step == views[0].length:
            views[0].tell(f"b_lora: {sum(v.method.live(v.p) for v in views)} of {sum(v.method.r for v in views)} terms open")
