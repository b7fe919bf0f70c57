"""SARA by hand: vectors drawn one after the other from what is left, then GaLore's or Fira's step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.sara import SARA
from deltaw.ops import random as rng

from .fira import fira
from .galore import adam, leading

RULES = [SARA(r=3, every=4), SARA(r=3, every=4, host="fira", scale=1.0)]


def drawn(M: Tensor, k: int, key: int) -> Tensor:
    """The waiting time of vector i is exponential with rate sigma_i: the k that come first."""
    sigma = torch.linalg.svdvals(M)
    wait = torch.tensor([-torch.log(1 - u) / s for u, s in zip(rng.uniform((len(sigma),), key), sigma)])
    return leading(M, M.shape[0])[:, sorted(wait.argsort()[:k].tolist())]


def closed(rule: SARA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            right = G.shape[0] >= G.shape[1]
            M = G.T if right else G
            if step % rule.every == 0:
                frames[k] = drawn(M, int(rule.r), rng.key(0, f"{k}.W", "sample", step))
            P = frames[k]
            if rule.host == "fira":
                D = fira(M, P, state[k], lr, rule.scale)
            else:
                D = P @ adam(P.T @ M, state[k], lr * rule.scale, 1e-6, before=True)
            p[k] = p[k] - (D.T if right else D)
    return p
