"""AdaMSS's choice by hand: scores in Python lists, a schedule, and what is left out stands still."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .... import attach
from ....methods.rules.asa import ASA
from ....methods.structure.adamss import AdaMSS
from ....plan import Plan
from ...laws.base import must
from ...tiny import values

K, TARGET, BEGIN, END, EVERY, BETA_I, BETA_U, POWER, STEPS = 4, 3, 1, 8, 2, 0.7, 0.8, 2.0, 11


def check() -> str:
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8)).double()
    rule = ASA(TARGET, BEGIN, END, EVERY, BETA_I, BETA_U, POWER)
    adapted = attach(net, Plan(AdaMSS(R=5, K=K), rules=(rule,)))
    optimizer, entries = adapted.optimizer(2e-2), adapted.entries()
    on = {(s, g) for s in entries for g in range(K)}
    mean: dict[Any, Tensor] = {}
    far: dict[Any, Tensor] = {}
    counts = []
    for t in range(1, STEPS + 1):
        before = {(s, w): e.get(w).detach().clone() for s, e in entries.items() for w in "AB"}
        optimizer.zero_grad()
        (net(values(8, 6, name=f"x{t}")) - values(8, 8, name=f"y{t}")).square().mean().backward()
        optimizer.step()
        for (s, w), old in before.items():
            new, group = entries[s].get(w).detach(), entries[s].get("group").tolist()
            for i, (a, b) in enumerate(zip(old, new)):
                g = i if w == "A" else group[i]
                moves = (s, g) in on and (w == "B" or t > 1)  # B = 0 at first, and so is the gradient of A
                must(torch.equal(a, b) != moves, f"step {t}: group {g} of {s} is {'on' if (s, g) in on else 'off'}, and {w}[{i}] did not follow")
        if not BEGIN <= t <= END:
            continue
        for s, e in entries.items():
            for w in "AB":
                p = e.get(w)
                now = (p.detach() * p.grad).abs()
                old_mean = mean.get((s, w), 0 * now)
                far[s, w] = BETA_U * far.get((s, w), 0 * now) + (1 - BETA_U) * (now - old_mean).abs()
                mean[s, w] = BETA_I * old_mean + (1 - BETA_I) * now
        if t % EVERY == 0:
            scores = {}
            for s, e in entries.items():
                group = e.get("group").tolist()
                for g in range(K):
                    of_A = (mean[s, "A"] * far[s, "A"])[g].mean()
                    of_B = (mean[s, "B"] * far[s, "B"])[[i for i, k in enumerate(group) if k == g]].mean()
                    scores[s, g] = float(of_A + of_B)
            left = int(TARGET + (2 * K - TARGET) * (1 - (t - BEGIN) / (END - BEGIN)) ** POWER)
            on = set(sorted(on, key=lambda k: -scores[k])[:left])
            mean, far = {}, {}
            counts.append(len(on))
    must(counts[-1] == TARGET and counts[0] > TARGET, f"groups on: {counts}")
    return f"{STEPS} steps, groups on: {counts}"
