"""Fira by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.fira import Fira

from .galore import adam, leading

RULES = [
    Fira(r=3, every=4, svd="exact"),
    Fira(r=3, every=4, scale=0.25, svd="exact"),
    Fira(r=2, every=4, svd="exact", side="reverse"),
]


def fira(G: Tensor, P: Tensor, st: dict[str, Any], lr: float, scale: float) -> Tensor:
    """The step for a frame on the left."""
    C = P.T @ G
    psi = adam(C, st, 1.0, 1e-6, before=True)
    rate = (1 - 0.999 ** st["t"]) ** 0.5 / (1 - 0.9 ** st["t"])
    raw = psi / rate
    S = (G - scale * P @ C) * torch.stack([raw[:, j].norm() / (C[:, j].norm() + 1e-8) for j in range(C.shape[1])])
    norm = S.norm()
    if "N" in st:
        limit = max(float(norm / (st["N"] + 1e-8)), 1.01) / 1.01
        S, norm = S / limit, norm / limit
    st["N"] = norm
    return lr * rate * (scale * P @ raw + S)


def closed(rule: Fira, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = (G.shape[0] >= G.shape[1]) != (rule.side == "reverse")
            M = G.T if right else G
            if step % rule.every == 0:
                frames[k] = leading(M, int(rule.r))
            D = fira(M, frames[k], state[k], lr, rule.scale)
            p[k] = p[k] - (D.T if right else D)
    return p
