"""PRILoRA: a LoRA half of whose A is pruned again and again, by weight and input."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2401.11316", claims=("ranks that rise with depth beat uniform and falling ones on GLUE",))
class PRILoRA(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n), B (m, r) trained; the rule prilora sets, every 40 steps, half of A to
    zero, by weight and input. Ranks that rise with depth: Plan("prilora", ranks="prilora").

    Start: A ~ U(±1/sqrt n), B = 0: the base's first output. Count: r (m + n), about half of A zero. Exact LoRA rank: r. Merges exactly.
    Source: Benedek and Wolf 2024; interval, share and ranks from memory, the group of the pruning a choice (see the rule).
    Trap: inputs count twice under gradient checkpointing, all alike, which changes no order.

    >>> from deltaw.methods import PRILoRA
    >>> {k: p.shape for k, p in PRILoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8)}
    """

    r: int = 8
    alpha: float = 16.0
    every: int = 40
    share: float = 0.5

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, every=self.every)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + (self.alpha / self.r) * chain(p.B, p.A)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["prilora"](self.every, self.share),)
