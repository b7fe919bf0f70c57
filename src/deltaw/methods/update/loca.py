"""LoCA's turns: coefficients for some steps, places for some steps, in the end coefficients only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpecError
from . import update


class Turns(torch.optim.AdamW):
    """AdamW that leaves out the groups whose turn it is not: their gradients are dropped before the step. A group's
    "done" counts all steps and is saved with the state."""

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            moves = group["turn"][0] <= group["done"] % group["cycle"] < group["turn"][1]
            if group["places"] and group["until"]:
                moves = moves and group["done"] < group["until"]
            elif group["until"] and group["done"] >= group["until"]:
                moves = True
            for p in group["params"]:
                if not moves:
                    p.grad = None
                elif group["places"] and p.grad is not None:
                    p.grad.clamp_(-1, 1)
            group["done"] += 1
        super().step()
        return loss


@update(paper="arXiv:2502.06820")
class LoCATurns:
    """AdamW in cycles of `cycle` steps: the first `first` for all tensors but places (`l`), the rest for places alone.

    Places have a rate of their own, no weight decay, and gradients cut to ±1. After `until` steps (about a tenth of
    the training; 0: never) places stay and everything else moves in every step. Source: Du et al. 2025 and the authors'
    code, which counts forward passes. Trap: it counts optimiser steps, so gradient accumulation does not shift the turns.
    """

    cycle: int = 30
    first: int = 10
    until: int = 0
    lr_places: float = 1e-4
    weight_decay: float = 0.0

    def optimizer(
        self, named: dict[str, nn.Parameter], lr: float, lookups: Collection[str] = (), **kw: Any
    ) -> torch.optim.Optimizer:
        if not 0 < self.first < self.cycle:
            raise SpecError(f"first = {self.first} steps of a cycle of {self.cycle} leave none for one of the two")
        decay = kw.pop("weight_decay", self.weight_decay)
        groups: list[dict[str, Any]] = []
        for places in (False, True):
            members: list[tuple[str, Tensor]] = [
                (k, p) for k, p in named.items() if (k.rpartition(".")[2] == "l") == places
            ]
            rate, turn = (self.lr_places, (self.first, self.cycle)) if places else (lr, (0, self.first))
            rest = {"places": places, "turn": turn, "cycle": self.cycle, "until": self.until, "done": 0}
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": 0.0 if places else decay, **rest})
        return Turns(groups, lr=lr, **kw)
