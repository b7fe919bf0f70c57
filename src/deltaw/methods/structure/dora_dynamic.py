"""Dynamic rank distribution (called DoRA; not the weight-decomposed one): a gated bank whose small terms are pruned."""

from __future__ import annotations

from typing import Any

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Start, Tensors, method, zeros
from ..banks import SLOTS, bank


def he(start: Start, shape: tuple[int, ...]) -> Any:
    """U(±sqrt(6 / fan-in)): kaiming_uniform_ with a = 0."""
    return start.uniform(shape, (6.0 / shape[-1]) ** 0.5)


@method(paper="arXiv:2405.17357", claims=("as good as LoRA and AdaLoRA at the same storage",))
class DoRADynamic(Method):
    """y = W x + b0 + s B diag(c) A x, s = alpha / r. B (m, r), c (r,), A (r, n) trained.

    Start: A, B ~ U(±sqrt(6 / fan-in)), c = 0: the base's first output. The rule dora_dynamic gates terms off, from r = ceil(1.5
    target_r) to target_r a site on average; it has to know the run's length: adapted.optimizer(lr, steps=N). Count: r (m + n + 1) in training,
    target_r of them in the end. Exact LoRA rank: r. Source: Zhang et al. 2024 and its code.
    Trap: a step may revive a gate between two prunings; s stays that of the first r.

    >>> from deltaw.methods import DoRADynamic
    >>> {k: p.shape for k, p in DoRADynamic(r=6, target_r=4).params(10, 8).items()}
    {'B': (10, 6), 'c': (6,), 'A': (6, 8)}
    """

    r: int = 12
    alpha: float = 8.0
    target_r: int = 8
    every: int = 100
    beta: float = 0.9
    eta: float = 0.1
    start_at: float = 0.15
    end_at: float = 0.5

    slots = SLOTS

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        return bank(m, n, self.r, B=he, c=zeros, A=he)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.c, p.A)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["dora_dynamic"](self.target_r, self.every, self.beta, self.eta, self.start_at, self.end_at),)
