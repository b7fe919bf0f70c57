"""HD-PiSSA by hand: as many frames as workers, one after the other, and the difference of their products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.hd_pissa import HDPiSSA

from ..hand import adam

RULES = [HDPiSSA(r=3), HDPiSSA(r=2, alpha=6.0, workers=3), HDPiSSA(r=1, workers=2, weight_decay=0.1)]


def closed(rule: HDPiSSA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    frames: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for k, W in p.items():
        if W.dim() == 2:
            U, S, V = torch.svd(W)
            root = S.sqrt().diag()
            cuts = [slice(j * rule.r, (j + 1) * rule.r) for j in range(rule.workers)]
            frames[k] = [((U @ root)[:, c], (root @ V.T)[c]) for c in cuts]
    state: dict[Any, dict[str, Any]] = {}
    for _ in range(steps):
        for k, G in grad(p).items():
            new = p[k] * (1 - lr * rule.weight_decay)
            for j, (B, A) in enumerate(frames.get(k, ())):
                dA = adam(rule.alpha / rule.r * B.T @ G, state.setdefault((k, j, "A"), {}), lr)
                dB = adam(rule.alpha / rule.r * G @ A.T, state.setdefault((k, j, "B"), {}), lr)
                new = new + (B - dB) @ (A - dA) - B @ A
            p[k] = new if k in frames else new - adam(G, state.setdefault(k, {}), lr)
    return p
