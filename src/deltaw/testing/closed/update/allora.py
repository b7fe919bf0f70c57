"""ALLoRA by hand: a gain for every row of B, before Adam or behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.allora import ALLoRA

from ..hand import adam

RULES = [ALLoRA(), ALLoRA(eta=5.0, on="update")]


def closed(rule: ALLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    for _ in range(steps):
        for k, h in grad(p).items():
            gain = 1 / (p[k].square().sum(1).sqrt() + 1 / rule.eta**2).sqrt()[:, None] if k[-1] == "B" else 1.0
            if rule.on == "gradient":
                p[k] = p[k] - adam(gain * h, state[k], lr)
            else:
                p[k] = p[k] - gain * adam(h, state[k], lr)
    return p
