"""LoRA+ by hand: AdamW with another rate for B."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.lora_plus import LoraPlus

from ..hand import adamw

RULES = [LoraPlus(), LoraPlus(ratio=4.0, weight_decay=0.1)]
PAIRS = True
PEFT = "tests/test_axes.py: the groups of create_loraplus_optimizer"


def closed(rule: LoraPlus, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    rate = {k: lr * rule.ratio if k.endswith("B") else lr for k in p}
    return adamw(p, grad, rate.__getitem__, lambda k: 1 - rate[k] * rule.weight_decay, steps)
