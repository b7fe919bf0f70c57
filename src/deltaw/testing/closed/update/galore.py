"""GaLore by hand: SVD, project, Adam with epsilon before the correction, decay after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.galore import GaLore

RULES = [GaLore(r=3, every=4, svd="exact"), GaLore(r=3, every=4, side="left", svd="exact", scale=1.0), GaLore(r=0.5, every=4)]


def adam(g: Tensor, s: dict[str, Any], lr: float, eps: float = 1e-8, before: bool = False) -> Tensor:
    """The step of Adam as the papers write it; `before`: epsilon before the bias correction."""
    s["t"] = t = s.get("t", 0) + 1
    s["m"] = 0.9 * s.get("m", 0 * g) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0 * g) + 0.001 * g * g
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    if before:
        return lr * c2**0.5 / c1 * s["m"] / (s["v"].sqrt() + eps)
    return lr * (s["m"] / c1) / ((s["v"] / c2).sqrt() + eps)


def leading(M: Tensor, k: int) -> Tensor:
    U = torch.linalg.svd(M)[0][:, :k]
    return torch.stack([u if u[u.abs().argmax()] > 0 else -u for u in U.T], 1)


def closed(rule: GaLore, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = G.shape[0] >= G.shape[1] if rule.side == "auto" else rule.side == "right"
            M = G.T if right else G
            r = rule.r if rule.r >= 1 else round(rule.r * M.shape[0])
            if step % rule.every == 0:
                frames[k] = leading(M, int(r))
            P = frames[k]
            D = P @ adam(P.T @ M, state[k], lr * rule.scale, 1e-6, before=True)
            p[k] = p[k] - (D.T if right else D)
    return p
