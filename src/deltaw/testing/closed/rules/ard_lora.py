"""ARD-LoRA's two penalties by hand: what they add to the gradient of every head."""

from __future__ import annotations

import torch
from torch import nn

from .... import attach
from ....methods.structure.ard_lora import ARDLoRA
from ....plan import Plan
from ...laws.base import close, must
from ...tiny import values

HEADS, LAM, BETA, STEPS = 2, 0.3, 0.2, 6


def check() -> str:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    adapted = attach(net, Plan(ARDLoRA(3, 2, HEADS, lam=LAM, beta=BETA)))
    optimizer = adapted.optimizer(0.4)  # large, so that factors change their signs
    alphas = {k: t for k, t in adapted.trainable().items() if k.endswith("alpha")}
    last, seen = {k: t.detach().clone() for k, t in alphas.items()}, set()
    for step in range(STEPS):
        optimizer.zero_grad()
        (net(values(8, 6, name=f"x{step}")) - 3).square().mean().backward()
        data = {k: t.grad.clone() for k, t in alphas.items() if t.grad is not None}
        now = {k: t.detach().clone() for k, t in alphas.items()}
        optimizer.step()
        for k, t in alphas.items():
            assert t.grad is not None
            more = [LAM * (_sign(a) + BETA * _sign(a - b)) for a, b in zip(now[k].tolist(), last[k].tolist())]
            close(f"step {step}: {k}", t.grad - data[k], torch.tensor(more, dtype=torch.float64), 1e-9)
            seen |= {round(v, 6) for v in more}
        last = now
    must(len(seen) >= 4, f"too few cases: {sorted(seen)}")
    return f"{STEPS} steps, gradients of the penalties {sorted(seen)}"


def _sign(v: float) -> int:
    return (v > 0) - (v < 0)
