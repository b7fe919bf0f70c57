"""DoRA's dynamic rank distribution: terms that are a small part of their site's update are gated off, most of them late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import slots
from ..rank import allocators, budgets, scores
from . import Rule, rule


@rule(paper="arXiv:2405.17357")
class DoRADynamic(Rule):
    """After step t (from 0): a term's score is |c_i| |b_i| |a_i| / |B diag(c) A|_F, averaged by S <- beta S + (1 - beta) score. With
    t0 = start T, t1 = (1 - end) T: every `every` steps from t0 on, and at t1, the floor(N (r - target_r) / r p³) lowest of all N terms
    (at least one) get c_i = 0, p = (t - t0) / (t1 - t0). After t1 those are held at 0; before, a step may revive one.

    Loss until t1: + eta times the mean of the variances (unbiased) of the rows of A and columns of B. Memory: S (r,), who lives.
    Source: Zhang et al. ACL 2024 and its code; norms from Gram matrices. Trap: while every c is 0, so is every score; weight decay acts on c.
    """

    target_r: int = 8
    every: int = 100
    beta: float = 0.9
    eta: float = 0.1
    start_at: float = 0.15
    end_at: float = 0.5
    T: int = 0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        self.span(view)
        g = getattr(view.p, slots.gate(view))
        return {"S": torch.zeros_like(g.detach()), "live": torch.ones(len(g), dtype=torch.bool, device=g.device)}

    def span(self, view: Any) -> tuple[int, int]:
        T = int(self.T or view.total)
        return round(self.start_at * T), max(round((1 - self.end_at) * T), round(self.start_at * T) + 1)

    def before_all(self, views: list[Any]) -> None:
        if self.eta and views[0].step <= self.span(views[0])[1]:
            found = [(t, v.method.slots[k]) for v in views for k, t in slots.factors(v).items() if t.dim() == 2]
            slots.penalise([t for t, _ in found], lambda free: self.eta * torch.cat([t.var(1 - axis) for t, (_, axis) in zip(free, found)]).mean())

    def after_all(self, views: list[Any]) -> None:
        t, (begin, end) = views[0].step - 1, self.span(views[0])
        for v in views:
            v.s["S"].lerp_(scores.share(v.p.B, getattr(v.p, slots.gate(v)), v.p.A), 1 - self.beta)
        if begin <= t <= end and ((t - begin) % self.every == 0 or t == end):
            N, r = sum(len(v.s["S"]) for v in views), len(views[0].s["S"])
            count = N - budgets.late_cubic(N, N * self.target_r / r, budgets.part(t, begin, end))
            dead = allocators.drop_lowest({v.name: v.s["S"] for v in views}, max(count, 1))
            views[0].tell(f"dora_dynamic: {N - sum(int(d.sum()) for d in dead.values())} of {N} terms live")
            slots.remember(views, {k: ~d for k, d in dead.items()})
        elif t > end:
            slots.hold(views)
