"""Without terms that come later it is AdamW by hand; with them see the rules increlora and elalora."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.slot_adamw import SlotAdamW

from ..hand import adamw

RULES = [SlotAdamW(), SlotAdamW(weight_decay=0.1)]


def closed(rule: SlotAdamW, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    return adamw(p, grad, lambda k: lr, lambda k: 1 - lr * rule.weight_decay, steps)
