"""SARA by hand: vectors drawn one after the other from what is left, then GaLore's or Fira's step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.sara import SARA
from deltaw.ops import random as rng

from ..hand import State, adam, leading, on_the_left
from .fira import fira

RULES = [SARA(r=3, every=4), SARA(r=3, every=4, host="fira", scale=1.0)]


def drawn(M: Tensor, k: int, key: int) -> Tensor:
    """The waiting time of vector i is exponential with rate sigma_i: the k that come first."""
    sigma = torch.linalg.svdvals(M)
    wait = torch.tensor([-torch.log(1 - u) / s for u, s in zip(rng.uniform((len(sigma),), key), sigma)])
    return leading(M, M.shape[0])[:, sorted(wait.argsort()[:k].tolist())]


def closed(rule: SARA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    frames: dict[str, Tensor] = {}

    def way(k: str, step: int, G: Tensor, state: State) -> Tensor:
        if step % rule.every == 0:
            frames[k] = drawn(G, int(rule.r), rng.key(0, f"{k}.W", "sample", step))
        P = frames[k]
        if rule.host == "fira":
            return fira(G, P, state, lr, rule.scale)
        return P @ adam(P.T @ G, state, lr * rule.scale, 1e-6, before=True)

    return on_the_left(p, grad, lr, steps, way)
