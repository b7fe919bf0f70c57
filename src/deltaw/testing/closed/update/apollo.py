"""APOLLO by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.apollo import Apollo
from deltaw.ops import random as rng

from ..hand import State, adam, on_the_left

RULES = [Apollo(r=3, every=4), Apollo(r=1, every=4, scale=16.0, per="matrix")]


def closed(rule: Apollo, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    frames: dict[str, Tensor] = {}

    def way(k: str, step: int, G: Tensor, state: State) -> Tensor:
        if step % rule.every == 0:
            key = rng.key(0, f"{k}.W", "sketch", step)
            frames[k] = rng.normal((G.shape[0], int(rule.r)), key) / int(rule.r) ** 0.5
        C = frames[k].T @ G
        rate = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        psi = adam(C, state, 1.0, 1e-6, before=True) / rate
        if rule.per == "matrix":
            S = G * psi.square().sum().sqrt() / (C.square().sum().sqrt() + 1e-8)
        else:
            S = G * psi.square().sum(0).sqrt() / (C.square().sum(0).sqrt() + 1e-8)
        if step and float(S.norm()) > 1.01 * (state["norm"] + 1e-8):
            S = S * 1.01 * (state["norm"] + 1e-8) / S.norm()
        state["norm"] = float(S.norm())
        return lr * rate * rule.scale**0.5 * S

    return on_the_left(p, grad, lr, steps, way)
