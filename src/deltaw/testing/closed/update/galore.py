"""GaLore by hand: SVD, project, Adam with epsilon before the correction, decay after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.galore import GaLore

from ..hand import adam, leading, lion, rms, second

RULES = [
    GaLore(r=3, every=4, svd="exact"), GaLore(r=3, every=4, side="left", svd="exact", scale=1.0), GaLore(r=0.5, every=4),
    GaLore(r=3, every=4, side="reverse", svd="exact"), GaLore(r=3, every=4, side="both", svd="exact"), GaLore(r=3, every=4, inner="lion"),
    GaLore(r=3, every=4, inner="adafactor"),
]  # fmt: skip


def inside(rule: GaLore, C: Tensor, s: dict[str, Any], lr: float) -> Tensor:
    if rule.inner == "lion":
        return lion(C, s, lr)
    if rule.inner == "adafactor":
        u = second(C, s)
        return lr * u / max(1.0, rms(u))
    return adam(C, s, lr, 1e-6, before=True)


def closed(rule: GaLore, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            m, n = G.shape
            right = {"auto": m >= n, "left": False, "right": True, "reverse": m < n, "both": True}[rule.side]
            r = rule.r if rule.r >= 1 else round(rule.r * (n if right else m))
            if step % rule.every == 0:
                P = leading(G, int(r)) if rule.side == "both" or not right else torch.eye(m, dtype=G.dtype)
                Q = leading(G.T, int(r)) if rule.side == "both" or right else torch.eye(n, dtype=G.dtype)
                frames[k] = P, Q
            P, Q = frames[k]
            p[k] = p[k] - P @ inside(rule, P.T @ G @ Q, state[k], lr * rule.scale) @ Q.T
    return p
