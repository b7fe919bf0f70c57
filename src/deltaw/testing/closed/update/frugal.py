"""FRUGAL by hand: masks for coordinates, projectors for directions, whole matrices for blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.frugal import Frugal
from deltaw.ops import random as rng

from ..hand import adam, leading

RULES = [
    *(Frugal(density=0.5, frame=f, every=4, svd="exact") for f in ("columns", "rows", "entries", "svd", "haar")),
    Frugal(density=0.5, frame="blocks", every=4, rest=0.1), Frugal(density=0.5, frame="blocks", every=3, order="ascending"),
]  # fmt: skip


def frame(rule: Frugal, k: str, G: Tensor, step: int) -> Tensor:
    """A 0/1 mask of the entries, or an orthonormal basis of the smaller side."""
    (m, n), key = G.shape, lambda word: rng.key(0, f"{k}.W", word, step)
    if rule.frame in ("svd", "haar"):
        M = G.T if m >= n else G
        if rule.frame == "svd":
            return leading(M, M.shape[0] // 2)
        Q, R = torch.linalg.qr(rng.normal((M.shape[0], M.shape[0] // 2), key("haar")))
        return Q @ R.diagonal().sign().diag()
    mask = torch.zeros(m, n, dtype=G.dtype)
    if rule.frame == "columns":
        mask[:, rng.choose(n // 2, n, key("choose"))] = 1
    elif rule.frame == "rows":
        mask[rng.choose(m // 2, m, key("choose"))] = 1
    else:
        mask.view(-1)[rng.choose(m * n // 2, m * n, key("choose"))] = 1
    return mask


def closed(rule: Frugal, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    frames: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
                continue
            if new := step % rule.every == 0:
                state[k] = {}
            if rule.frame == "blocks":
                period = step // rule.every
                deal = rng.uniform((2,), rng.key(0, "turns", "uniform", period // 2)).argsort().tolist()
                which = deal[period % 2] if rule.order == "random" else period % 2
                active = k == ("wide.weight", "tall.weight")[which]
                p[k] = p[k] - (adam(G, state[k], lr) if active else lr * rule.rest * G.sign())
                continue
            if new:
                frames[k] = frame(rule, k, G, step)
            F = frames[k]
            if rule.frame in ("svd", "haar"):
                M = G.T if G.shape[0] >= G.shape[1] else G
                D = F @ adam(F.T @ M, state[k], lr) + lr * (M - F @ F.T @ M).sign()
                p[k] = p[k] - (D.T if G.shape[0] >= G.shape[1] else D)
            else:
                p[k] = p[k] - F * adam(G, state[k], lr) - lr * ((1 - F) * G).sign()
    return p
