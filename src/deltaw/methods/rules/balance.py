"""Balance: a bias that draws tokens to the terms that few of them choose."""

from __future__ import annotations

from typing import Any

import torch

from ...sites.watch import mean_of_processes
from . import Rule, rule


@rule(paper="arXiv:2408.15664")
class Balance(Rule):
    """After every step d_i <- d_i + u sign(mean(c) - c_i), c_i the tokens that chose term i since the last one, over all micro-batches and
    processes; then c = 0. No gradient is involved. Nothing moves in evaluation.

    Source: balancing without an auxiliary loss (Wang et al. 2024), as SMoRA and FlyLoRA use it. Trap: under gradient checkpointing forwards
    are counted twice, all alike, which changes no sign.
    """

    u: float = 1e-3

    def after(self, view: Any) -> None:
        c = mean_of_processes(view.p.c)
        view.set("d", view.p.d + self.u * torch.sign(c.mean() - c))
        view.set("c", torch.zeros_like(c))
