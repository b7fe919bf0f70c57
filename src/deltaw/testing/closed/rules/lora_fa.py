"""LoRA-FA's gradient by hand: with it a plain step of B moves the weight by the gradient projected on A's rows."""

from __future__ import annotations

import torch
from torch import nn

import deltaw
from deltaw.methods.rules.lora_fa import ProjectedGradient
from deltaw.methods.structure.lora_fa import LoRAFA
from deltaw.plan import Plan
from deltaw.testing.laws.base import close, must
from deltaw.testing.tiny import values


def check() -> str:
    for alpha in (3.0, 12.0):
        net = nn.Sequential(nn.Linear(7, 5, dtype=torch.float64))
        adapted = deltaw.attach(net, Plan(LoRAFA(r=3, alpha=alpha), targets=["0"], rules=(ProjectedGradient(),)))
        p, x = adapted.state(), values(9, 7, name="x")
        A, B = p["0.A"], p["0.B"]
        with torch.no_grad():
            A.copy_(values(3, 7, name="A")), B.copy_(values(5, 3, name="B"))
        optimizer = adapted.optimizer(lr=0.0)
        y = net(x)
        y.retain_grad()
        y.pow(3).sum().backward()
        optimizer.step()
        assert y.grad is not None and B.grad is not None
        close("s B.grad A", alpha / 3 * B.grad @ A, y.grad.mT @ x @ torch.linalg.pinv(A) @ A, 1e-6)
        must(torch.equal(A, values(3, 7, name="A")), "A has moved")
    return "s dB A = G P_A at two scales"
