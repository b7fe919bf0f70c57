"""DyLoRA's draw: how many of the terms take part in the next step."""

from __future__ import annotations

from typing import Any

import torch

from ..banks import leading
from . import Rule, rule


@rule(paper="arXiv:2210.07558")
class DyLoRA(Rule):
    """After step t: at = (1, .., 1, 0, .., 0) with b ones, b uniform on 1 .. r, one for all sites, from the seed and t + 1. In a
    step only term b (frozen), or terms 1 .. b, move.

    Source: Valipour et al. 2022. A reading: that the others stand still; under plain Adam their momentum would go on.
    """

    frozen: bool = True

    def before(self, view: Any) -> None:
        at = view.p.at
        moves = at - torch.cat([at[1:], at.new_zeros(1)]) if self.frozen else at
        view.damp("B", moves[None].clone())
        view.damp("A", moves[:, None].clone())

    def after_all(self, views: list[Any]) -> None:
        for v in views:
            v.set("at", leading(v.draw("").seed, v.step, len(v.p.at)).to(v.p.at))
