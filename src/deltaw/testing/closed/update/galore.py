"""GaLore by hand: SVD, project, Adam with epsilon before the correction, decay after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.galore import GaLore

RULES = [
    GaLore(r=3, every=4, svd="exact"), GaLore(r=3, every=4, side="left", svd="exact", scale=1.0), GaLore(r=0.5, every=4),
    GaLore(r=3, every=4, side="reverse", svd="exact"), GaLore(r=3, every=4, side="both", svd="exact"), GaLore(r=3, every=4, inner="lion"),
    GaLore(r=3, every=4, inner="adafactor"),
]  # fmt: skip


def adam(
    g: Tensor,
    s: dict[str, Any],
    lr: float,
    eps: float = 1e-8,
    before: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Tensor:
    """The step of Adam as the papers write it; `before`: epsilon before the bias correction."""
    (b1, b2), t = betas, s.get("t", 0) + 1
    s["t"], s["m"], s["v"] = t, b1 * s.get("m", 0 * g) + (1 - b1) * g, b2 * s.get("v", 0 * g) + (1 - b2) * g * g
    c1, c2 = 1 - b1**t, 1 - b2**t
    if before:
        return lr * c2**0.5 / c1 * s["m"] / (s["v"].sqrt() + eps)
    return lr * (s["m"] / c1) / ((s["v"] / c2).sqrt() + eps)


def lion(g: Tensor, s: dict[str, Any], lr: float) -> Tensor:
    m = s.get("m", 0 * g)
    s["m"] = 0.99 * m + 0.01 * g
    return lr * torch.sign(0.9 * m + 0.1 * g)


def second(g: Tensor, s: dict[str, Any]) -> Tensor:
    """g over the root of Adafactor's second moment."""
    s["t"] = t = s.get("t", 0) + 1
    w, q = t**-0.8, g**2 + 1e-30
    if g.dim() != 2:
        s["v"] = (1 - w) * s.get("v", 0 * q) + w * q
        return g / s["v"].sqrt()
    s["r"] = (1 - w) * s.get("r", 0) + w * q.sum(1, keepdim=True) / q.shape[1]
    s["c"] = (1 - w) * s.get("c", 0) + w * q.sum(0, keepdim=True) / q.shape[0]
    return g / torch.sqrt(s["r"] @ s["c"] / s["r"].mean())


def rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def leading(M: Tensor, k: int) -> Tensor:
    U = torch.linalg.svd(M)[0][:, :k]
    return torch.stack([u if u[u.abs().argmax()] > 0 else -u for u in U.T], 1)


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
