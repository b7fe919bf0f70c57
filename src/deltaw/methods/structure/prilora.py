"""PRILoRA: a LoRA half of whose A is pruned again and again, by weight and input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Affine, Map, chain
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


class Noting(Map):
    """y = L(x); sums the squares of the inputs, feature by feature, into `seen`."""

    def __init__(self, L: Affine, seen: Tensor):
        self.L, self.seen = L, seen

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.add_(x.detach().reshape(-1, x.shape[-1]).to(self.seen).square().sum(0))
        return self.L(x)

    def cols(self, i: Tensor) -> Tensor:
        return self.L.cols(i)


@method(paper="arXiv:2401.11316", claims=("ranks that rise with depth beat uniform and falling ones on GLUE",))
class PRILoRA(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n), B (m, r) trained; in training q (n,) gathers |X_:j|² and the rule prilora sets, every
    40 steps, half of A to zero. Ranks that rise with depth: Plan("prilora", ranks="prilora").

    Start: A ~ U(±1/sqrt n), B = 0: the base's first output. Count: r (m + n), about half of A zero. Exact LoRA rank: r. Merges exactly.
    Source: Benedek and Wolf 2024; interval, share and ranks from memory, the group of the pruning a choice (see the rule).
    Trap: q doubles under gradient checkpointing, all alike, which changes no order.

    >>> from deltaw.methods import PRILoRA
    >>> {k: p.shape for k, p in PRILoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'q': (8,)}
    """

    r: int = 8
    alpha: float = 16.0
    every: int = 40
    share: float = 0.5

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, every=self.every)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "q": Param((n,), train=False, ruled=True)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        new = Affine(L.op + (self.alpha / self.r) * chain(p.B, p.A), L.bias)
        return Noting(new, p.q) if p.training else new

    def rules(self) -> tuple[Any, ...]:
        return (RULES["prilora"](self.every, self.share),)
