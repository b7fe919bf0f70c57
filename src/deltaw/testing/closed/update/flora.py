"""Flora by hand: Adafactor's second moment, momentum in a Gaussian sketch, the scale of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.flora import Flora
from deltaw.ops import random as rng

from ..hand import rms, second

RULES = [Flora(r=3, every=4), Flora(r=6, every=0, beta=0.5), Flora(r=7, every=4)]  # the last: no side is wide enough


def closed(rule: Flora, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    b, r = rule.beta, int(rule.r)
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    M: dict[str, Tensor] = {}
    P: dict[str, Tensor] = {}
    for step in range(steps):
        for k, G in grad(p).items():
            u = second(G, state[k])
            if G.dim() != 2 or min(G.shape) < r:
                D = M[k] = b * M.get(k, 0 * u) + (1 - b) * u
            else:
                right = G.shape[0] >= G.shape[1]
                u = u.T if right else u
                old = P.get(k)
                if old is None or (rule.every and step % rule.every == 0):
                    P[k] = rng.normal((u.shape[0], r), rng.key(0, f"{k}.W", "sketch", step)) / r**0.5
                old = P[k] if old is None else old
                held = M.get(k, torch.zeros(r, u.shape[1], dtype=u.dtype))
                D = (1 - b) * u + b * old @ held
                M[k] = b * (held if old is P[k] else P[k].T @ (old @ held)) + (1 - b) * P[k].T @ u
                D = D.T if right else D
            p[k] = p[k] - lr * max(1e-3, rms(p[k])) * D / max(1.0, rms(D) / rule.clip)
    return p
