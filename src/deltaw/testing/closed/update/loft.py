"""LoFT by hand: every gradient ever seen is kept and re-expressed; its running means are of the lifted gradients, entry by entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.loft import LoFT

RULES = [LoFT(), LoFT(betas=(0.5, 0.8), eps=1e-6, weight_decay=0.1)]


def closed(rule: LoFT, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {k: [] for k in p}
    old: dict[str, Tensor] = {}
    D, (b1, b2) = rule.delta * torch.eye(3, dtype=torch.float64), rule.betas
    for t in range(1, steps + 1):
        g, now = grad(p), dict(p)
        for k in (site + "." + w for w in "AB" for site in ("wide", "tall")):
            turn = k[-1] == "AB"[t % 2]  # B in the first step
            flip = (lambda x: x) if k[-1] == "A" else (lambda x: x.T)  # B is A of the transposed weight
            Y = flip(now[k[:-1] + ("B" if k[-1] == "A" else "A")])
            pinv = torch.linalg.inv(Y.T @ Y + D) @ Y.T
            if seen[k]:
                seen[k] = [pinv @ old[k] @ c for c in seen[k]]
            seen[k].append(torch.linalg.inv(Y.T @ Y + D) @ flip(g[k]) / s**2)
            old[k] = Y
            if turn:
                ages = range(t - 1, -1, -1)
                mean = sum((1 - b1) * b1**a * (s * Y @ c) for a, c in zip(ages, seen[k]))
                square = sum((1 - b2) * b2**a * (s * Y @ c) ** 2 for a, c in zip(ages, seen[k]))
                F = mean / (1 - b1**t) / ((square / (1 - b2**t)).sqrt() + rule.eps)
                p[k] = p[k] * (1 - lr * rule.weight_decay) - lr * flip(pinv @ F / s)
    return p
