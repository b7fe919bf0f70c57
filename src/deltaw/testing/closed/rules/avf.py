"""AVF by hand: strengths by lists, who rests, and that what rests has neither moved nor aged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .... import attach
from ....methods.rules.avf import AVF
from ....methods.structure.lora import LoRA
from ....plan import Plan
from ...laws.base import close, must
from ...tiny import values
from ..hand import State, adam

T_I, T_F, K, N_F, BETA, RATE, STEPS = 2, 2, 2, 2, 0.6, 2e-2, 9


def check() -> str:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    adapted = attach(net, Plan(LoRA(2, 4.0), rules=(AVF(T_I, T_F, K, N_F, BETA),)))
    optimizer, p = adapted.optimizer(RATE), adapted.trainable()
    mine = {k: t.detach().clone() for k, t in p.items()}
    first = {k: t.clone() for k, t in mine.items()}
    state: dict[str, State] = {k: {} for k in p}
    strength, resting, seen = dict.fromkeys(p, 0.0), set[str](), list[list[str]]()
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        (net(values(8, 6, name=f"x{t}")) - values(8, 4, name=f"y{t}")).square().mean().backward()
        grads: dict[str, Tensor] = {k: q.grad.clone() for k, q in p.items() if q.grad is not None}
        optimizer.step()
        for k in p:
            if k not in resting:
                mine[k] = mine[k] - adam(grads[k], state[k], RATE)
            close(f"step {t}: {k}", p[k].detach(), mine[k], 1e-9)
            strength[k] = BETA * strength[k] + (1 - BETA) * float((mine[k] - first[k]).abs().mean())
        if t >= T_I and (t - T_I) % T_F == 0 and (t - T_I) // T_F <= N_F:
            resting = set(sorted(p, key=lambda k: -strength[k])[:K]) if (t - T_I) // T_F < N_F else set()
            seen.append(sorted(resting))
    must([len(s) for s in seen] == [K, K, 0], f"resting: {seen}")
    must(any(not torch.equal(mine[k], first[k]) for k in p), "nothing moved")
    return f"{STEPS} steps, resting: {seen}"
