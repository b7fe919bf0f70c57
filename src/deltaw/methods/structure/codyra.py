"""CoDyRA: a thresholded bank for tasks that come one after the other."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Tensors, method, normal
from ..banks import SLOTS, bank


@method(paper="arXiv:2412.01004", claims=("fewer active terms: less is forgotten of what the model could do before",))
class CoDyRA(Method):
    """y = W x + b + B diag(c) A x. B (m, r), c (r,), A (r, n) trained, for the task at hand.

    Start: A ~ U(±1/sqrt n), B = 0, c ~ N(0, 1): the base's first output. The rule codyra thresholds c in the second part of a task;
    adapted.optimizer(lr, steps=N). At its end deltaw.next_task(adapted) moves the live terms into a constant beside W and starts afresh:
    W_t = W_0 + sum of the tasks' B diag(c) A, no task number needed. Count: r (m + n + 1) a task in training. Exact LoRA rank: r (and
    what the constant has). Source: Lu et al. and its code (r 16, kappa 0.005, AdamW with beta2 0.9999).
    Trap: the tasks' losses (masked logits of other classes) are the user's.

    >>> from deltaw.methods import CoDyRA
    >>> {k: p.shape for k, p in CoDyRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'c': (4,), 'A': (4, 8)}
    """

    r: int = 16
    kappa: float = 0.005
    rungs: int = 10
    dense: float = 0.5

    slots = SLOTS

    def params(self, m: int, n: int) -> Declared:
        return bank(m, n, self.r, c=normal(1.0))

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.B, p.c, p.A)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["codyra"](self.kappa, self.rungs, self.dense),)
