"""Online Subspace Descent by hand, with the frame's gradient from autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.osd import OSD

from ..hand import State, adam, leading, lion, on_the_left

RULES = [OSD(r=3), OSD(r=2, rate=0.05, frame_decay=0.1, scale=1.0), OSD(r=3, by="lion")]


def gradient(P: Tensor, M: Tensor) -> Tensor:
    with torch.enable_grad():
        Q = P.clone().requires_grad_()
        S = M / M.norm()
        (g,) = torch.autograd.grad((Q @ Q.T @ S - S).square().sum(), Q)
    return g


def closed(rule: OSD, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    own: dict[str, State] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}

    def way(k: str, step: int, G: Tensor, state: State) -> Tensor:
        P = frames.setdefault(k, leading(G, int(rule.r)))
        if step:
            move = (lion if rule.by == "lion" else adam)(gradient(P, G), own[k], rule.rate)
            frames[k] = (1 - rule.rate * rule.frame_decay) * P - move
        return P @ adam(P.T @ G, state, lr * rule.scale, 1e-6, before=True)

    return on_the_left(p, grad, lr, steps, way)
