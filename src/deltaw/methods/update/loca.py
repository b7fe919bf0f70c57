"""LoCA's turns: coefficients for some steps, places for some steps, in the end coefficients only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpecError
from . import NOTHING, About, fused, update


def turn(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Before a step: drop the gradients of the groups whose turn it is not, cut those of places. A group's "done" counts
    all steps and is saved with the optimiser's state."""
    if any(a is not None for a in (*args[1:], *kwargs.values())):
        raise SpecError("the rule 'loca' takes no closure: it has to see the gradients before the step")
    for group in optimizer.param_groups:
        done, until, places = group["done"], group["until"], group["places"]
        over = bool(until) and done >= until
        moves = (not places) if over else group["turn"][0] <= done % group["cycle"] < group["turn"][1]
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if not moves:
            for p in group["params"]:
                p.grad = None
        elif places and grads:
            torch._foreach_clamp_max_(grads, 1.0)
            torch._foreach_clamp_min_(grads, -1.0)
        group["done"] = done + 1


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
        self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        if not 0 < self.first < self.cycle:
            raise SpecError(f"first = {self.first} steps of a cycle of {self.cycle} leave none for one of the two")
        decay = kw.pop("weight_decay", self.weight_decay)
        groups: list[dict[str, Any]] = []
        for places in (False, True):
            members: list[tuple[str, Tensor]] = [
                (k, p) for k, p in named.items() if (k.rpartition(".")[2] == "l") == places
            ]
            rate, when = (self.lr_places, (self.first, self.cycle)) if places else (lr, (0, self.first))
            rest = {"places": places, "turn": when, "cycle": self.cycle, "until": self.until, "done": 0}
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": 0.0 if places else decay, **rest})
        optimizer = fused(torch.optim.AdamW, groups, lr, **kw)
        optimizer.register_step_pre_hook(turn)
        return optimizer
