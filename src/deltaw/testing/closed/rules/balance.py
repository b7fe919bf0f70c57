"""The bias against crowded terms by hand, with the choice of every token made in Python."""

from __future__ import annotations

import math

import torch
from torch import nn

from .... import attach
from ....methods.route.smora import SMoRA
from ....plan import Plan
from ...laws.base import close, must
from ...tiny import values

R, K, U, STEPS = 5, 2, 0.1, 8


def check() -> str:
    net = nn.Sequential(nn.Linear(6, 4, dtype=torch.float64))
    adapted = attach(net, Plan(SMoRA(R, K, u=U), targets=["0"]))
    optimizer, entry = adapted.optimizer(1e-2), adapted.entries()["0"]
    d, crowds = [0.0] * R, []
    for step in range(STEPS):
        parts = [values(7, 6, name=f"x{step}{k}") + 0.5 for k in range(2)]
        Rt, count = entry.get("R").detach(), [0] * R
        for x in torch.cat(parts):
            share = [1 / (1 + math.exp(-float(row @ x))) + b for row, b in zip(Rt, d)]
            for i in sorted(range(R), key=lambda i: -share[i])[:K]:
                count[i] += 1
        optimizer.zero_grad()
        for x in parts:
            net(x).square().mean().backward()
        with torch.no_grad():
            net.eval()(parts[0])
        net.train()
        optimizer.step()
        mean = sum(count) / R
        d = [b + U * ((c < mean) - (c > mean)) for b, c in zip(d, count)]
        close(f"d after step {step}", entry.get("d"), torch.tensor(d, dtype=torch.float64), 1e-12)
        must(not entry.get("c").any(), "the counts were not reset")
        crowds.append(max(count) - min(count))
    return f"{STEPS} steps of 2 micro-batches, most minus least tokens {crowds[0]} to {crowds[-1]}"
