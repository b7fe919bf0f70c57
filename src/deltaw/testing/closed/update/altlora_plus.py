"""AltLoRA+ by hand, in both readings of which momentum is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.altlora_plus import AltLoRAPlus

RULES = [
    AltLoRAPlus(),
    AltLoRAPlus(betas=(0.5, 0.9), store="reference"),
    AltLoRAPlus(betas=(0.5, 0.9), weight_decay=0.1),
]


def closed(rule: AltLoRAPlus, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    M, V, old = ({k: torch.zeros_like(t) for k, t in p.items()} for _ in range(3))
    D, (b1, b2) = rule.delta * torch.eye(3, dtype=torch.float64), rule.betas
    for t in range(1, steps + 1):
        g = grad(p)
        for k in (site + "." + w for w in "AB" for site in ("wide", "tall")):
            other = k[:-1] + ("B" if k[-1] == "A" else "A")
            Y = p[other]
            if k[-1] == "A":
                H = torch.linalg.inv(Y.T @ Y + D)
                h, moved = H @ g[k] / s**2, H @ Y.T @ old[other] @ M[k]
            else:
                H = torch.linalg.inv(Y @ Y.T + D)
                h, moved = g[k] @ H / s**2, M[k] @ old[other] @ Y.T @ H
            V[k] = b2 * V[k] + (1 - b2) * h**2
            now = b1 * moved + (1 - b1) * h
            M[k] = now if rule.store == "transported" else b1 * M[k] + (1 - b1) * h
            old[other] = Y
            p[k] = (p[k] - lr / (1 - b1**t) * now / (V[k].sqrt() + rule.eps)) * (1 - lr * rule.weight_decay)
    return p
