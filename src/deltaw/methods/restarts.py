"""What rules share that restart W + s B A without changing it, and the schedule of their learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError
from .init import innermost

Views = list[Any]


def restarted(views: Views, key: str) -> Views:
    """Those of the sites that have factors; modules and token rows that are trained as they are have nothing to restart."""
    found = [v for v in views if {"A", "B"} <= set(v.p.names())]
    if not found:
        raise SpecError(f"'{key}' restarts the factors of W + s B A; {views[0].method} at {views[0].name} has none")
    return found


def fresh(view: Any, name: str) -> Tensor:
    """`name` as the method starts it, with new random numbers. (A initialisation of the plan does not count here.)"""
    t = getattr(view.p, name)
    B, A, _ = view.factors()
    param = innermost(view.method).params(B.shape[0], A.shape[1])[name]
    return param.init(view.draw(name), tuple(t.shape)).to(t)  # type: ignore[union-attr]


def pruned(view: Any, name: str, share: float) -> Tensor:
    """Where each entry's optimiser state comes from when a random share of it is dropped (see View.set)."""
    shape = tuple(getattr(view.p, name).shape)
    keep = view.draw(f"prune.{name}").uniform(shape, 1.0) >= 2.0 * share - 1.0
    return torch.where(keep, torch.arange(keep.numel()).view(shape), -1).to(getattr(view.p, name).device)


def warming(step: int, every: int, warmup: int) -> float:
    """The factor of a restart's warm-up in optimiser step `step` (from 0): 0, 1/w, 2/w, ..., 1 after each multiple of `every`."""
    return min(step % every / warmup, 1.0) if warmup and step >= every else 1.0


def jagged_cosine(
    optimizer: torch.optim.Optimizer, steps: int, every: int, warmup: int, restart_warmup: int, floor: float = 0.1
) -> torch.optim.lr_scheduler.LambdaLR:
    """ReLoRA's schedule, for a plain loop or `Trainer(optimizers=(optimizer, schedule))`: a cosine from 1 to `floor` over all
    steps after a linear warm-up; after each restart a linear one from 0 to where the cosine is when it ends.

    Use it with ReLoRA(restart_warmup=0): the rule's own warm-up would come on top. Source: Lialin et al. 2023, their code.
    """
    if not 0 < warmup <= every or restart_warmup >= every or not 0 < floor <= 1:
        raise SpecError(
            f"a warm-up ends before the first restart, 0 < floor <= 1; found {warmup}, {restart_warmup}, {every}, {floor}"
        )

    def cosine(t: int) -> float:
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * (t - warmup) / max(1, steps - warmup)))

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        since = t % every
        return (
            since / restart_warmup * cosine(t - since + restart_warmup)
            if t >= every and since < restart_warmup
            else cosine(t)
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
