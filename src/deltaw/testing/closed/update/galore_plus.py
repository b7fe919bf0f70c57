"""GaLore+ by hand: the projected step and a masked Adam on what it leaves. (No names of attention here; test_update_algebra has them.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.galore_plus import GaLorePlus

from .galore import adam, leading

RULES = [GaLorePlus(r=3, every=4, share=0.1, warmup=1), GaLorePlus(r=2, every=4, share=1.0, warmup=0, scale=1.0)]


def closed(rule: GaLorePlus, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    rest: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = G.shape[0] >= G.shape[1]
            M = G.T if right else G
            if step % rule.every == 0:
                frames[k] = leading(M, int(rule.r))
            P = frames[k]
            E = M - P @ P.T @ M
            D = P @ adam(P.T @ M, state[k], lr * rule.scale)
            if step == rule.warmup:
                places = E.abs().flatten().argsort(descending=True)[: round(rule.share * E.numel())]
                masks[k] = torch.zeros(E.numel(), dtype=E.dtype).index_fill(0, places, 1).view_as(E)
            if step >= rule.warmup:
                D = D + masks[k] * adam(masks[k] * E, rest[k], lr * rule.scale)
            p[k] = p[k] - (D.T if right else D)
    return p
