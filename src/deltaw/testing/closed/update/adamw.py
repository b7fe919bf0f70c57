"""AdamW by hand (Loshchilov, Hutter 2019): decoupled decay, epsilon after the bias correction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.adamw import AdamW

RULES = [AdamW(), AdamW(weight_decay=0.1)]


def adamw(p: dict[str, Tensor], grad: Any, lr: Any, decay: Any, steps: int) -> dict[str, Tensor]:
    """lr(name), decay(name): what each tensor has."""
    m = {k: 0 * t for k, t in p.items()}
    v = {k: 0 * t for k, t in p.items()}
    for t in range(1, steps + 1):
        for k, g in grad(p).items():
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g * g
            step = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)) ** 0.5 + 1e-8)
            p[k] = p[k] * (1 - lr(k) * decay(k)) - lr(k) * step
    return p


def closed(rule: AdamW, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    return adamw(p, grad, lambda k: lr, lambda k: rule.weight_decay, steps)
