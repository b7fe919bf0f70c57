"""LoCA's turns by hand, with places and without them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaw.methods.update.loca import LoCATurns

from ...laws.base import close, must
from ...tiny import values
from ..hand import State, adam

RULES = [LoCATurns(cycle=4, first=2, lr_places=3e-3), LoCATurns(cycle=3, first=1, until=5, weight_decay=0.1)]
RATE, STEPS = 1e-2, 11


def check(rule: LoCATurns) -> str:
    start = {"a.c": values(7, name="c"), "a.l": 3.0 * values(7, name="l"), "b.c": values(4, 5, name="bc")}
    p = {k: nn.Parameter(t.clone()) for k, t in start.items()}
    optimizer, state, mine = rule.optimizer(p, RATE), dict[str, State]({k: {} for k in p}), {k: t.clone() for k, t in start.items()}
    cut = 0

    def grad(k: str, t: Tensor, step: int) -> Tensor:
        return 2.0 * (t - values(*t.shape, name=f"{k}{step}"))

    for step in range(STEPS):
        for k, t in p.items():
            t.grad = grad(k, t.detach(), step)
        optimizer.step()
        over = bool(rule.until) and step >= rule.until
        for k, t in mine.items():
            places = k.endswith(".l")
            if places != (not over and step % rule.cycle >= rule.first):
                continue
            g = grad(k, t, step)
            if places:
                cut += int((g.abs() > 1).sum())
                g = torch.where(g > 1, torch.ones_like(g), torch.where(g < -1, -torch.ones_like(g), g))
            kept = 1.0 if places else 1.0 - RATE * rule.weight_decay
            mine[k] = kept * t - adam(g, state[k], rule.lr_places if places else RATE)
        for k in p:
            close(f"step {step}: {k}", p[k].detach(), mine[k], 1e-9)
    must(cut > 0 and all(not torch.equal(mine[k], start[k]) for k in p), "a case was not met")
    return f"{STEPS} steps, {cut} gradients cut"
