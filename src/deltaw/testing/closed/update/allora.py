"""ALLoRA by hand: a gain for every row of B, before Adam or behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.allora import ALLoRA

RULES = [ALLoRA(), ALLoRA(eta=5.0, on="update")]


def closed(rule: ALLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    m, v = ({k: torch.zeros_like(t) for k, t in p.items()} for _ in range(2))
    for t in range(1, steps + 1):
        for k, h in grad(p).items():
            gain = 1 / (p[k].square().sum(1).sqrt() + 1 / rule.eta**2).sqrt()[:, None] if k[-1] == "B" else 1.0
            h = h * gain if rule.on == "gradient" else h
            m[k], v[k] = 0.9 * m[k] + 0.1 * h, 0.999 * v[k] + 0.001 * h**2
            U = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            p[k] = p[k] - lr * (U if rule.on == "gradient" else U * gain)
    return p
