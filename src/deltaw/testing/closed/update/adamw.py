"""AdamW by hand (Loshchilov, Hutter 2019): decoupled decay, epsilon after the bias correction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.adamw import AdamW

from ..hand import adamw

RULES = [AdamW(), AdamW(weight_decay=0.1)]


def closed(rule: AdamW, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    return adamw(p, grad, lambda k: lr, lambda k: 1 - lr * rule.weight_decay, steps)
