"""SGD."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import NOTHING, About, fused, update


@update(paper="(stochastic gradient descent, as in torch)")
class SGD:
    """v <- momentum v + g (+ weight_decay W), W <- W - lr v; momentum 0: plain gradient descent, which keeps no state.

    Weight decay is added to the gradient, as in torch. Source: torch.optim.SGD, whose keyword arguments pass through. Trap: its
    rates are of another size than Adam's, since the step is as large as the gradient.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix."""
        return m * n if self.momentum else 0

    def optimizer(
        self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        groups = [{"params": list(named.items())}]
        kw = {"momentum": self.momentum, "weight_decay": self.weight_decay, **kw}
        if kw["momentum"]:  # the fused kernel takes no tensor whose first gradient comes after another's
            kw.setdefault("foreach", None)
        return fused(torch.optim.SGD, groups, lr, **kw)
