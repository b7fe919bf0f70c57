"""B-LoRA's price by hand: its gradient in every gate, and noise that is new, uniform and the same in every run."""

from __future__ import annotations

import math

import torch
from torch import nn

from .... import attach
from ....methods.structure.b_lora import BLoRA
from ....plan import Plan
from ...laws.base import close, must
from ...tiny import values

R, BITS, RANK, STEPS = 3, 0.02, 0.3, 8
SHIFT = 2 / 3 * math.log(0.1 / 1.1)
COARSE_TO_FINE = (4, 8, 16, 32)


def gradient(name: str, phi: list[float]) -> list[float]:
    p = [1 / (1 + math.exp(-(f - SHIFT))) for f in phi]
    if name.endswith("phi"):
        return [RANK * v * (1 - v) for v in p]
    return [BITS * (1 - p[j]) * sum(b * math.prod(p[: i + 1]) for i, b in enumerate(COARSE_TO_FINE) if i >= j) for j in range(4)]


def check() -> str:
    noise = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)).double()
        adapted = attach(net, Plan(BLoRA(R, 6.0, BITS, RANK)))
        optimizer, run = adapted.optimizer(0.5), list[torch.Tensor]()
        gates = {k: t for k, t in adapted.trainable().items() if "phi" in k}
        for step in range(STEPS):
            optimizer.zero_grad()
            net(values(8, 6, name=f"x{step}")).square().mean().backward()
            data = {k: torch.zeros_like(t) if t.grad is None else t.grad.clone() for k, t in gates.items()}
            want = {k: torch.tensor(gradient(k, t.tolist()), dtype=torch.float64) for k, t in gates.items()}
            optimizer.step()
            for k, t in gates.items():
                assert t.grad is not None
                close(f"step {step}: {k}", t.grad - data[k], want[k], 1e-8)
            run.append(torch.cat([e.get("u").detach().clone() for e in adapted.entries().values()]))
        noise.append(torch.stack(run))
    u = noise[0]
    must(torch.equal(u, noise[1]), "another run draws other noise")
    must(len(u.unique()) == u.numel() and 0 < u.min() and u.max() < 1, "noise is repeated, or outside (0, 1)")
    must(abs(float(u.mean()) - 0.5) < 0.1 and abs(float(u.std()) - 12**-0.5) < 0.05, f"noise of mean {float(u.mean()):.2f}, deviation {float(u.std()):.2f}")
    return f"{STEPS} steps, {u.numel()} numbers of noise"
