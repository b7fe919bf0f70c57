"""BAdam: AdamW on one block of layers at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Master, Order, Plain, SubOptimizer, Turns, Unit


def blocks(names: Iterable[str]) -> dict[str, int]:
    """The block of each tensor: a numbered layer ("...layers.3."); what comes before the first layer; what comes after the last.
    In a model without numbered layers, a module."""
    names = list(names)
    number = {n: next((n.split(".")[: k + 1] for k, w in enumerate(n.split(".")) if w.isdigit()), None) for n in names}
    layered = [n for n in names if number[n]]
    keys = []
    for i, n in enumerate(names):
        place = "before" if layered and i < names.index(layered[0]) else "after"
        keys.append(".".join(number[n] or ([place] if layered else n.split(".")[:-1])))
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return {n: order[key] for n, key in zip(names, keys)}


@update(paper="arXiv:2404.02827")
class BAdam:
    """AdamW for `every` steps on one block (a transformer layer), then on the next one; the others stay, bit by bit.

    State: Adam's for the active block (and, where it has 16 bits, a float32 copy), dropped when the turn passes on. Source: Luo et al. 2024
    and their code: descending order, 50 steps (their first turn has one step less). They leave embeddings, head and final norm out: freeze them for that;
    here what is trained before the first layer is a block, and what comes after the last. Trap: other blocks' gradients are still
    computed; inside `in_backward()` each is freed as it comes.
    """

    every: int = 50
    order: Order = "descending"
    weight_decay: float = 0.0

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix of the active block."""
        return 2 * m * n

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        block = blocks(named)
        count = max(block.values()) + 1
        units = [
            Unit(k, Turns(Master(Plain()), block[k], count, 1, self.order, self.every), {"W": p})
            for k, p in named.items()
        ]
        return SubOptimizer(named, units, lr, **{"weight_decay": self.weight_decay, **kw})
