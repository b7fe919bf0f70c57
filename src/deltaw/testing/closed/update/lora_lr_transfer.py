"""The carried rate by hand: Adam on A and B at a rate from the site's own width, rank and scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.lora_lr_transfer import LoraLrTransfer

from ..hand import adamw

RULES = [
    LoraLrTransfer(n=3, r=12, s=0.5), LoraLrTransfer(n=24, s=2.0, start="B"), LoraLrTransfer(r=6, s=1.0, small=True), LoraLrTransfer(),
]  # fmt: skip
# of the wide site (n = 12) and of the tall one (n = 6), both with r = 3 and s = 2
RATES = [
    ((0.5 * 12 * 3 / (2 * 3 * 12)) ** 0.5, (0.5 * 12 * 3 / (2 * 3 * 6)) ** 0.5),
    (2.0, 4.0),
    (1.0, 1.0),
    (1.0, 1.0),
]


def closed(rule: LoraLrTransfer, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    wide, tall = RATES[RULES.index(rule)]
    return adamw(p, grad, lambda k: lr * (wide if k.startswith("wide") else tall), lambda k: 1.0, steps)
