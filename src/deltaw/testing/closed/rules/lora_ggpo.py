"""LoRA-GGPO's row deviations by hand, from the m x n matrices; and a key that is another one after every step."""

from __future__ import annotations

import torch
from torch import nn

import deltaw
from deltaw.methods.structure.lora import LoRA
from deltaw.methods.wrap.lora_ggpo import LoRAGGPO
from deltaw.plan import Plan
from deltaw.testing.laws.base import close, must
from deltaw.testing.tiny import values


def check() -> str:
    net = nn.Sequential(nn.Linear(7, 5, dtype=torch.float64)).train()
    adapted = deltaw.attach(net, Plan(LoRAGGPO(LoRA(r=3, alpha=6.0), sigma=0.3, beta=0.5), targets=["0"]))
    p, x, keys = adapted.state(), values(9, 7, name="x"), set()
    A, B = p["0.A"], p["0.B"]
    with torch.no_grad():
        A.copy_(values(3, 7, name="A")), B.copy_(values(5, 3, name="B"))
    optimizer = adapted.optimizer(lr=0.1)
    must(not p["0.tau"].any(), "there is noise in the first step")
    for _ in range(3):
        optimizer.zero_grad()
        net(x).pow(3).sum().backward()
        assert A.grad is not None and B.grad is not None
        G = (2.0 * (B @ A.grad + B.grad @ A)).detach()
        optimizer.step()
        V = net[0].weight + 2.0 * B @ A
        tau = ((0.3**2 * V.square().sum(1) + 0.5**2 * G.square().sum(1)) / 5).sqrt()
        close("tau", p["0.tau"], tau, 1e-9)
        keys.add(int(p["0.key"]))
    must(len(keys) == 3, "two steps have the same noise")
    return "the standard deviation of every row over three steps"
