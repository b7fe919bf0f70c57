"""GaLore+ by hand: the projected step and a masked Adam on what it leaves. (No names of attention here; test_update_algebra has them.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.galore_plus import GaLorePlus

from ..hand import State, adam, leading, on_the_left

RULES = [GaLorePlus(r=3, every=4, share=0.1, warmup=1), GaLorePlus(r=2, every=4, share=1.0, warmup=0, scale=1.0)]


def closed(rule: GaLorePlus, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    rest: dict[str, State] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}

    def way(k: str, step: int, G: Tensor, state: State) -> Tensor:
        if step % rule.every == 0:
            frames[k] = leading(G, int(rule.r))
        P = frames[k]
        E = G - P @ P.T @ G
        D = P @ adam(P.T @ G, state, lr * rule.scale)
        if step == rule.warmup:
            places = E.abs().flatten().argsort(descending=True)[: round(rule.share * E.numel())]
            masks[k] = torch.zeros(E.numel(), dtype=E.dtype).index_fill(0, places, 1).view_as(E)
        if step >= rule.warmup:
            D = D + masks[k] * adam(masks[k] * E, rest[k], lr * rule.scale)
        return D

    return on_the_left(p, grad, lr, steps, way)
