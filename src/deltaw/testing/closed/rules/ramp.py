"""The ramp by hand, and that nothing else moves it."""

from __future__ import annotations

import torch
from torch import nn

from .... import attach
from ....methods.structure.singlora import SingLoRA
from ....plan import Plan
from ...laws.base import close
from ...tiny import values


def check() -> str:
    for T in (1, 3, 7):
        net = nn.Sequential(nn.Linear(6, 4, dtype=torch.float64))
        W, b = net[0].weight.detach(), net[0].bias.detach()
        adapted = attach(net, Plan(SingLoRA(2, 4.0, T), targets=["0"]))
        optimizer, entry = adapted.optimizer(1e-2), adapted.entries()["0"]
        for t in range(T + 3):
            u, A, x = min(t / T, 1.0), entry.get("A").detach(), values(5, 6, name=f"x{t}")
            close(f"u at step {t}", entry.get("u"), torch.tensor(u, dtype=torch.float64), 1e-12)
            optimizer.zero_grad()
            y = net(x)
            close(f"the output at step {t}", y, x @ (W + 2.0 * u * A[:4] @ A.mT).mT + b, 1e-10)
            y.square().mean().backward()
            optimizer.step()
    return "u = min(t / T, 1) for T = 1, 3, 7"
