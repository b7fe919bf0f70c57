"""Fira by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.fira import Fira

from ..hand import State, adam, leading, on_the_left

RULES = [
    Fira(r=3, every=4, svd="exact"),
    Fira(r=3, every=4, scale=0.25, svd="exact"),
    Fira(r=2, every=4, svd="exact", side="reverse"),
]


def fira(G: Tensor, P: Tensor, st: State, lr: float, scale: float) -> Tensor:
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
    frames: dict[str, Tensor] = {}

    def way(k: str, step: int, G: Tensor, state: State) -> Tensor:
        if step % rule.every == 0:
            frames[k] = leading(G, int(rule.r))
        return fira(G, frames[k], state, lr, rule.scale)

    return on_the_left(p, grad, lr, steps, way, larger=rule.side == "reverse")
