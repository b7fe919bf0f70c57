"""APOLLO by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.apollo import Apollo
from deltaw.ops import random as rng

from .galore import adam

RULES = [Apollo(r=3, every=4), Apollo(r=1, every=4, scale=16.0, per="matrix")]


def closed(rule: Apollo, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    norms: dict[str, float] = {}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = G.shape[0] >= G.shape[1]
            M = G.T if right else G
            if step % rule.every == 0:
                frames[k] = (
                    rng.normal((M.shape[0], int(rule.r)), rng.key(0, f"{k}.W", "sketch", step)) / int(rule.r) ** 0.5
                )
            C = frames[k].T @ M
            rate = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
            psi = adam(C, state[k], 1.0, 1e-6, before=True) / rate
            if rule.per == "matrix":
                S = M * psi.square().sum().sqrt() / (C.square().sum().sqrt() + 1e-8)
            else:
                S = M * psi.square().sum(0).sqrt() / (C.square().sum(0).sqrt() + 1e-8)
            if k in norms and float(S.norm()) > 1.01 * (norms[k] + 1e-8):
                S = S * 1.01 * (norms[k] + 1e-8) / S.norm()
            norms[k] = float(S.norm())
            D = lr * rate * rule.scale**0.5 * S
            p[k] = p[k] - (D.T if right else D)
    return p
