"""LoRA-GGPO's noise: how large it is on every row of the weight, and which comes next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import random as rng
from ...spec import scale_of
from . import Rule, rule


@rule(paper="arXiv:2502.14538")
class RowNoise(Rule):
    """After a step tau_i = sqrt(sigma² |V_i|² + beta² |G_i|²) / sqrt m, V (m, n) the weight now, G = s (B dL/dA + dL/dB A) with the factors
    and gradients before it; key <- the next one.

    |G_i| comes from a 2r x 2r Gram matrix; V is made once a step. tau and key are tensors of the adapter, so that a resumed run goes on with them;
    micro-batches of one step, and a forward that is run again in the backward pass, have the same noise.
    """

    sigma: float = 0.03
    beta: float = 0.01

    def start(self, view: Any) -> dict[str, Tensor]:
        p = view.p
        if not {"A", "B"} & set(view.trained()) or not {"tau", "key"} <= set(p.names()) or p.A.dim() != 2 or p.B.shape[1] != p.A.shape[0]:
            raise SpecError(
                f"{view.name}: the noise follows the factors of W + s B A in LoRAGGPO(...); found no such A and B in {view.method}"
            )
        return {"G": torch.zeros_like(p.tau)}

    def before(self, view: Any) -> None:
        A, B = view.p.A, view.p.B
        dA, dB = (torch.zeros_like(t) if t.grad is None else t.grad for t in (A, B))
        left, right = torch.cat([B, dB], 1), torch.cat([dA, A])
        square = (left @ (right @ right.mT) * left).sum(1).clamp_min(0.0)
        view.s["G"] = (scale_of(view.method) * square.sqrt()).detach()

    def after(self, view: Any) -> None:
        view.set("tau", torch.zeros_like(view.p.tau))  # the weight without noise, whatever the mode is
        square = (self.sigma * view.weight().norm(dim=1)).square() + (self.beta * view.s["G"]).square()
        view.set("tau", (square / len(square)).sqrt())
        view.set("key", rng.bits(1, int(view.p.key))[0])
