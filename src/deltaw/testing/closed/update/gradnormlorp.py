"""GradNormLoRP by hand: V and g kept, their gradients from autograd through W = g V / |V|."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.gradnormlorp import GradNormLoRP

from ..hand import adam, leading

RULES = [GradNormLoRP(r=3, every=4, svd="exact"), GradNormLoRP(r=3, every=4, svd="exact", side="auto", scale=1.0)]


def weight(g: Tensor, V: Tensor) -> Tensor:
    return g[:, None] * V / V.norm(dim=1, keepdim=True)


def closed(rule: GradNormLoRP, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    sizes: dict[str, dict[str, Any]] = {k: {} for k in p}
    g = {k: t.norm(dim=1) for k, t in p.items() if t.dim() == 2}
    V = {k: t.clone() for k, t in p.items() if t.dim() == 2}
    frames: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            with torch.enable_grad():
                a, B = g[k].clone().requires_grad_(), V[k].clone().requires_grad_()
                dg, dV = torch.autograd.grad(weight(a, B), (a, B), G)
            m, n = G.shape
            if step % rule.every == 0:
                P = leading(dV, int(rule.r)) if rule.side == "both" or m < n else torch.eye(m, dtype=G.dtype)
                Q = leading(dV.T, int(rule.r)) if rule.side == "both" or m >= n else torch.eye(n, dtype=G.dtype)
                frames[k] = P, Q
            P, Q = frames[k]
            V[k] = V[k] - P @ adam(P.T @ dV @ Q, state[k], lr * rule.scale, 1e-6, before=True) @ Q.T
            g[k] = g[k] - adam(dg, sizes[k], lr, 1e-6, before=True)
            p[k] = weight(g[k], V[k])
    return p
