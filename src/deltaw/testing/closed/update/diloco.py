"""DiLoCo by hand for one worker: Adam, and after every phase a Nesterov step on what the phase did."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.diloco import DiLoCo

from ..hand import adam

RULES = [DiLoCo(every=4), DiLoCo(every=2, outer_lr=0.5, momentum=0.6, inner={"key": "adamw", "weight_decay": 0.1})]


def closed(rule: Any, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    decay = rule.inner["weight_decay"] if isinstance(rule.inner, dict) else 0.0
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    begin, u = dict(p), {k: 0 * t for k, t in p.items()}
    for t in range(1, steps + 1):
        for k, g in grad(p).items():
            p[k] = p[k] * (1 - lr * decay) - adam(g, state[k], lr)
        if t % rule.every == 0:
            for k in p:
                d = begin[k] - p[k]
                u[k] = rule.momentum * u[k] + d
                p[k] = begin[k] - rule.outer_lr * (d + rule.momentum * u[k])
            begin = dict(p)
    return p
