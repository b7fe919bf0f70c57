"""SGD by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.sgd import SGD

RULES = [SGD(), SGD(momentum=0.9)]


def closed(rule: SGD, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    seen: list[dict[str, Tensor]] = []
    for _ in range(steps):
        seen.append(grad(p))
        p = {k: t - lr * sum(rule.momentum ** (len(seen) - 1 - i) * g[k] for i, g in enumerate(seen)) for k, t in p.items()}
    return p
