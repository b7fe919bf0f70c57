"""ARD-LoRA: a rank for every head, by a scale that is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method, ones
from ..factors import divides, positive


def prefix(alpha: Tensor, r0: int, r: int, tau: float) -> Tensor:
    """(H, r): sigma((r0 alpha - i + 1/2) / tau), i = 1 .. r: about 1 for the first r0 alpha terms, about 0 for the others."""
    i = torch.arange(1, r + 1, dtype=alpha.dtype, device=alpha.device)
    return torch.sigmoid((r0 * alpha[:, None] - i + 0.5) / tau)


@method(paper="arXiv:2506.18267", claims=("deeper layers learn higher ranks; 0.3 % of the parameters near full fine-tuning",))
class ARDLoRA(Method):
    """y = W x + b + s (B * P) A x, row i of P that of its head h, P_h = alpha_h sigma((r0 alpha_h - j + 1/2) / tau) over j = 1 .. r; s = scale.
    B (m, r), A (r, n), alpha (heads,) trained; m rows in `heads` equal blocks.

    A reading: the paper's abstract says that ranks follow learned factors per layer and head, with an l1 and a total-variation term; the
    soft prefix, alpha = 1 at the start, r0 and the weights are ours. Rank of a head: min(round(r0 alpha), r). Start: A ~ U(±1/sqrt n), B = 0:
    the base's first output. The rule ard_lora adds lam (sum |alpha| + beta sum |alpha - the last alpha|) to the loss. Count: r (m + n) + heads.
    Exact LoRA rank: r. Source: Shinwari and Usama 2025. Trap: rounding alone would give alpha no gradient.

    >>> from deltaw.methods import ARDLoRA
    >>> {k: p.shape for k, p in ARDLoRA(r=4, heads=2).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'alpha': (2,)}
    """

    r: int = 16
    r0: int = 8
    heads: int = 1
    scale: float = 1.0
    tau: float = 0.5
    lam: float = 1e-3
    beta: float = 0.1

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, r0=self.r0, heads=self.heads)
        divides("heads", self.heads, m=m)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "alpha": Param((self.heads,), ones)}

    def weight(self, W: Op, p: Tensors) -> Op:
        P = p.alpha[:, None] * prefix(p.alpha, self.r0, self.r, self.tau)
        return W + self.scale * chain(p.B * P.repeat_interleave(p.B.shape[0] // self.heads, 0), p.A)

    def live(self, p: Tensors) -> int:
        return int((self.r0 * p.alpha.detach()).round().clamp(0, self.r).max())

    def rules(self) -> tuple[Any, ...]:
        return (RULES["ard_lora"](self.lam, self.beta),)
