"""Train, keep what moved most, rewind, train again."""

from __future__ import annotations

from typing import Any

import torch

from ..sparse import top
from . import Rule, rule


@rule(paper="arXiv:2110.07560")
class Lottery(Rule):
    """After `steps` optimiser steps methods with tensors v, I keep the share `keep` of their entries, those with the largest
    |v| over all sites together; v is rewound to 0 and its optimiser state dropped. l1: adds l1 / N · sign(v) to gradients.

    Source: Ansell et al. 2022. Trap: masking gradients instead would let weight decay and old moments move other entries.
    """

    keep: float = 0.01
    steps: int = 1000
    l1: float = 0.0

    def start(self, view: Any) -> dict[str, torch.Tensor]:
        return {"total": torch.tensor(view.base().numel())}

    def before_all(self, views: list[Any]) -> None:
        total = sum(int(view.s["total"]) for view in views)
        for view in views if self.l1 else ():
            view.p.v.grad.add_(view.p.v.sign(), alpha=self.l1 / total)

    def after_all(self, views: list[Any]) -> None:
        if views[0].step != self.steps:
            return
        moved = torch.cat([view.p.v.detach().abs().cpu() for view in views])
        chosen = top(moved, max(int(self.keep * len(moved)), 1))
        begin = 0
        for view in views:
            count = len(view.p.v)
            kept = (chosen[(chosen >= begin) & (chosen < begin + count)] - begin).to(view.p.v.device)
            view.set("I", view.p.I[kept])
            view.set("v", view.p.v.new_zeros(len(kept)), restart=True)
            begin += count
