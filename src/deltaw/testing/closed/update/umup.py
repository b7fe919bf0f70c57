"""u-muP by hand: one Adam whose rate is, per tensor, what the paper's table says of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.adamw import AdamW
from deltaw.methods.update.umup import UMuP

from ..hand import adamw

RULES = [
    UMuP(),
    UMuP(readouts=("tall.weight",), turned=("wide.weight",), stack="wide", depth=4),
    UMuP(inner=AdamW(weight_decay=0.02)),
]
RATES = [
    (6**-0.5, 12**-0.5, 1.0),
    (1.0, 0.5 * 6**-0.5, 1.0),
    (6**-0.5, 12**-0.5, 1.0),
]  # tall.weight 12 x 6, wide.weight 6 x 12, tall.bias


def closed(rule: UMuP, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    rates = dict(zip(("tall.weight", "wide.weight", "tall.bias"), RATES[RULES.index(rule)], strict=True))
    decay = getattr(rule.inner, "weight_decay", 0.0)
    return adamw(p, grad, lambda k: lr * rates[k], lambda k: 1 - decay, steps)  # a share a step, whatever the rate
