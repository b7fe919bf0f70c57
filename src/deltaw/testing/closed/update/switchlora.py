"""AdamW by hand; without switches every vector has made the same number of steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.switchlora import SwitchLoRA

RULES = [SwitchLoRA(), SwitchLoRA(weight_decay=0.1)]


def closed(rule: SwitchLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    m, v = ({k: 0 * t for k, t in p.items()} for _ in "mv")
    for t in range(1, steps + 1):
        for k, g in grad(p).items():
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g * g
            step = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            p[k] = p[k] * (1 - lr * rule.weight_decay) - lr * step
    return p
