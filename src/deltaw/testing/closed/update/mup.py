"""muP by hand: one Adam (or plain gradient descent) whose rate is, per tensor, what the paper's table says of it.

The tensors of the laws' model have base sizes too, so that the laws see rates that differ.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.adamw import AdamW
from deltaw.methods.update.mup import MuP
from deltaw.methods.update.sgd import SGD

from ..hand import adamw

LAWS: dict[str, list[int | None]] = {
    **{f"blocks.{i}.sq.weight": [8, 4] for i in range(2)}, **{f"blocks.{i}.sq.bias": [8] for i in range(2)},
    **{f"blocks.{i}.up.weight": [None, 8] for i in range(2)},
}  # fmt: skip
BOTH = {**LAWS, "tall.weight": [3, 2], "wide.weight": [3, 3], "tall.bias": [3]}  # 12 x 6, 6 x 12, 12
HEAD = {
    **LAWS,
    "tall.weight": [None, 2],
    "wide.weight": [3, None],
    "tall.bias": [None],
}  # a head, and a layer that reads no width
RULES = [
    MuP(BOTH), MuP(BOTH, inner=AdamW(weight_decay=0.1)), MuP(HEAD), MuP(HEAD, readouts=("tall.weight",)), MuP(BOTH, turned=("tall.weight",)),
    MuP(BOTH, inner=SGD(), like="sgd"), MuP(HEAD, readouts=("tall.weight",), inner=SGD(), like="sgd"), MuP(),
]  # fmt: skip
ADAM = [(1 / 3, 1 / 4, 1.0)] * 2 + [
    (1 / 3, 1.0, 1.0),
    (1.0, 1.0, 1.0),
    (1 / 4, 1 / 4, 1.0),
]  # of tall.weight, wide.weight, tall.bias
DESCENT = [(4 / 3, 2 / 4, 4.0), (3.0, 2.0, 1.0)]
RATES = [*ADAM, *DESCENT, (1.0, 1.0, 1.0)]


def closed(rule: MuP, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    rates = dict(zip(("tall.weight", "wide.weight", "tall.bias"), RATES[RULES.index(rule)], strict=True))
    decay = getattr(rule.inner, "weight_decay", 0.0)
    if rule.like == "adam":
        kept = 1 - lr * decay  # the same at every width
        return adamw(p, grad, lambda k: lr * rates[k], lambda k: kept, steps)
    for _ in range(steps):
        p = {k: p[k] - lr * rates[k] * g for k, g in grad(p).items()}
    return p
