"""AirLLM: prefixes of an orthonormal start, as long as the channel allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import RULES, Declared, Fill, Method, Param, Start, Tensors, method, ones, zeros
from ..factors import positive


def orthonormal(rows: bool) -> Fill:
    """Q of a Gaussian matrix: orthonormal rows, or columns."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        g = start.normal(shape, 1.0).double()
        Q: Tensor = torch.linalg.qr(g.mT if rows else g)[0]
        return (Q.mT if rows else Q).float()

    return fill


@method(paper="arXiv:2507.11515", claims=("less is sent over a radio link at an equal loss",))
class AirLLM(Method):
    """y = W x + b + s P diag(at * E) Q x, s = alpha / r. P (m, r), E (r,), Q (r, n) trained, `at` the first k terms, moved by the rule airllm: per
    step a channel is drawn, and the sites get the ranks that the numbers which get through pay for.

    Start: P, Qᵀ orthonormal, E = 0: the base's first output. Count: r (m + n + 1) here, k (m + n + 1) sent. Exact LoRA rank: r.
    Source: 2025 and its code. Differs: their ranks are chosen by PPO with a diffusion policy; here by scores under the budget, which is an
    allocator in that place. Trap: terms beyond k stand still in a step.

    >>> from deltaw.methods import AirLLM
    >>> {k: p.shape for k, p in AirLLM(r=4).params(10, 8).items()}
    {'P': (10, 4), 'E': (4,), 'Q': (4, 8), 'at': (4,)}
    """

    r: int = 64
    alpha: float = 32.0
    r_min: int = 1
    bandwidth: float = 1e6
    snr: tuple[float, float] = (0.0, 30.0)
    latency: float = 1.0
    bits: float = 16.0

    slots = {"P": 1, "Q": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, r_min=self.r_min)
        masks = {"at": Param((self.r,), ones, train=False, ruled=True)}
        return {"P": Param((m, self.r), orthonormal(False)), "E": Param((self.r,), zeros), "Q": Param((self.r, n), orthonormal(True)), **masks}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + (self.alpha / self.r) * chain(p.P, p.at * p.E if p.training else p.E, p.Q)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["airllm"](self.r_min, self.bandwidth, self.snr, self.latency, self.bits),)
