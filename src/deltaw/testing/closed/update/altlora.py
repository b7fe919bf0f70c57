"""AltLoRA by hand: A, then B with the new A, each with a momentum re-expressed in the other factor as it is now."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.altlora import AltLoRA

RULES = [AltLoRA(), AltLoRA(beta=0.5, delta=1e-6, weight_decay=0.1), AltLoRA(beta=0.5, order="turns")]


def closed(rule: AltLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    M = {k: torch.zeros_like(t) for k, t in p.items()}
    old = {k: torch.zeros_like(t) for k, t in p.items()}
    D, beta, count = rule.delta * torch.eye(3, dtype=torch.float64), rule.beta, dict.fromkeys(p, 0)
    for step in range(steps):
        g = grad(p)
        for k in (site + "." + w for w in "AB" for site in ("wide", "tall")):
            if rule.order == "turns" and k[-1] != "BA"[step % 2]:
                continue
            other = k[:-1] + ("B" if k[-1] == "A" else "A")
            Y = p[other]
            if k[-1] == "A":
                H = torch.linalg.inv(Y.T @ Y + D)
                M[k] = beta * H @ Y.T @ old[other] @ M[k] + (1 - beta) * H @ g[k] / s**2
            else:
                H = torch.linalg.inv(Y @ Y.T + D)
                M[k] = beta * M[k] @ old[other] @ Y.T @ H + (1 - beta) * g[k] @ H / s**2
            count[k] += 1
            old[other] = Y
            p[k] = (p[k] - lr / (1 - beta ** count[k]) * M[k]) * (1 - lr * rule.weight_decay)
    return p
