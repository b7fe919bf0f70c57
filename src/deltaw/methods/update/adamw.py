"""AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import NOTHING, About, fused, update


@update(paper="arXiv:1711.05101")
class AdamW:
    """torch.optim.AdamW over all trained tensors; weight decay 0 by default, as is usual for adapters.

    Keyword arguments of torch.optim.AdamW pass through. Fused where torch can, unless `fused` or `foreach` is given.
    """

    weight_decay: float = 0.0

    def optimizer(
        self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        groups = [{"params": list(named.items())}]
        return fused(torch.optim.AdamW, groups, lr, **{"weight_decay": self.weight_decay, **kw})
