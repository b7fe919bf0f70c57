"""AirLLM's step: a channel, and the ranks that get through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import random as rng
from .. import channel, slots
from ..rank import allocators, scores
from . import Rule, rule


@rule(paper="arXiv:2507.11515")
class AirLLM(Rule):
    """After step t a channel for the next one is drawn, snr uniform in its range (dB); it lets bandwidth log2(1 + 10^(snr / 10)) latency /
    bits numbers through. Sites share them by the mean sensitivity |E dE| + |P dP| + |Q dQ| of their terms (running mean, 0.9), each between
    r_min and r, at m + n + 1 numbers a term; where not even r_min everywhere gets through, all have r_min. at = the first k terms.

    Loss: + 0.01 times the mean over sites of |PᵀP - I|² + |Q Qᵀ - I|² (squared). Memory: the score. Source: 2025, their cost and penalty; the
    choice of ranks is ours, in the place of their learned policy (deltaw.methods.channel has its reward and its code of ranks).
    """

    r_min: int = 1
    bandwidth: float = 1e6
    snr: tuple[float, float] = (0.0, 30.0)
    latency: float = 1.0
    bits: float = 16.0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"score": torch.zeros_like(view.p.E.detach()[0])}

    def before_all(self, views: list[Any]) -> None:
        def loss(free: list[Tensor]) -> Tensor:
            grams = [(t.mT @ t if k % 2 == 0 else t @ t.mT) for k, t in enumerate(free)]
            return 0.01 / len(views) * torch.stack([(g - torch.eye(len(g)).to(g)).square().sum() for g in grams]).sum()

        slots.penalise([t for v in views for t in (v.p.P, v.p.Q)], loss)
        for v in views:
            found = torch.stack([scores.sensitivity(t).mean() for t in (v.p.P, v.p.E, v.p.Q)]).sum()
            v.s["score"].lerp_(found.to(v.s["score"]), 0.1)
            v.damp("P", v.p.at[None].clone())
            v.damp("E", v.p.at.clone())
            v.damp("Q", v.p.at[:, None].clone())

    def after_all(self, views: list[Any]) -> None:
        u = float(rng.uniform((1,), rng.key(views[0].draw("").seed, "channel", views[0].step), *self.snr))
        cost = {v.name: float(v.p.P.shape[0] + v.p.Q.shape[1] + 1) for v in views}
        budget = max(channel.affordable(self.bits, self.bandwidth, u, self.latency), sum(cost.values()) * self.r_min)
        ranks = allocators.proportional({v.name: float(v.s["score"]) for v in views}, budget, self.r_min, {v.name: len(v.p.E) for v in views}, cost)
        for v in views:
            v.set("at", (torch.arange(len(v.p.E)) < ranks[v.name]).to(v.p.at))
        if views[0].step % 50 == 0 or views[0].step == views[0].length:
            views[0].tell(f"airllm: {u:.1f} dB lets {budget:.0f} numbers through: ranks {min(ranks.values())} to {max(ranks.values())}")
