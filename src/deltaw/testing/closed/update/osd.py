"""Online Subspace Descent by hand, with the frame's gradient from autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.osd import OSD

from .galore import adam, leading, lion

RULES = [OSD(r=3), OSD(r=2, rate=0.05, frame_decay=0.1, scale=1.0), OSD(r=3, by="lion")]


def gradient(P: Tensor, M: Tensor) -> Tensor:
    with torch.enable_grad():
        Q = P.clone().requires_grad_()
        S = M / M.norm()
        (g,) = torch.autograd.grad((Q @ Q.T @ S - S).square().sum(), Q)
    return g


def closed(rule: OSD, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    own: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = G.shape[0] >= G.shape[1]
            M = G.T if right else G
            P = frames.setdefault(k, leading(M, int(rule.r)))
            D = P @ adam(P.T @ M, state[k], lr * rule.scale, 1e-6, before=True)
            p[k] = p[k] - (D.T if right else D)
            if step:
                move = (lion if rule.by == "lion" else adam)(gradient(P, M), own[k], rule.rate)
                frames[k] = (1 - rule.rate * rule.frame_decay) * P - move
    return p
