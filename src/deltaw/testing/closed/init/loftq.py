"""LoftQ by hand: the best rank-r part of what the base has lost."""

from __future__ import annotations

from torch import Tensor

from deltaw.methods.init.loftq import LoftQ

from ..hand import triplets

INITS = [LoftQ()]
PEFT = "T = 1, 2 and 4 against loftq_init, where bitsandbytes runs"


def closed(init: LoftQ, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    U, sigma, V = triplets(stats["original"] - W)
    root = (sigma[:r] / s).sqrt()
    return U[:, :r] * root, root[:, None] * V[:r], None
