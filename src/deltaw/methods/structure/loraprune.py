"""LoRAPrune: a LoRA whose gradients tell which heads and neurons of the base can go."""

from __future__ import annotations

from typing import Any

from ...ops import Affine, Map, chain
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method, ones
from ..factors import positive


@method(paper="arXiv:2305.18403", start="rounding", claims=("structured pruning at LoRA's memory; better perplexity than LLM-Pruner at 50 %",))
class LoRAPrune(Method):
    """y = u * (W x + b + s B A x), s = alpha / r. A (r, n), B (m, r) trained; u (m,) of ones and zeros, moved by the rule loraprune over the run
    (adapted.optimizer(lr, steps=N)): key/value groups with their query heads, and MLP neurons, masked at q, k, v, gate and up.

    Start: A ~ U(±1/sqrt n), B = 0, u = 1: the base's first output. `deltaw.prune.kept(adapted)` says what is left, for prune_structured.
    Count: r (m + n). Exact LoRA rank: r while nothing is masked. Source: Zhang et al. 2024 and its code (r 8, alpha 16, half of the units).
    Groups of key/value heads together with their queries are ours: the code knows no grouped queries. head: the size of a head.
    Trap: masks are 0/1 and have no gradient; on the first step G_A is 0, since B is.

    >>> from deltaw.methods import LoRAPrune
    >>> {k: p.shape for k, p in LoRAPrune(r=4).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'u': (10,)}
    """

    r: int = 8
    alpha: float = 16.0
    head: int = 64
    ratio: float = 0.5
    every: int = 10

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, head=self.head)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "u": Param((m,), ones, train=False, ruled=True)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        new = chain(p.u, L.op + (self.alpha / self.r) * chain(p.B, p.A))
        return Affine(new, None if L.bias is None else L.bias * p.u.to(L.bias.dtype))

    def rules(self) -> tuple[Any, ...]:
        return (RULES["loraprune"](self.ratio, self.every, self.head),)
