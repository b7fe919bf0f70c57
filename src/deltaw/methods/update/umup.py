"""u-muP: muP on weights of size one, so that no base model is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import NOTHING, About, rescaled, update
from .adamw import AdamW


@update(paper="arXiv:2407.17465")
class UMuP:
    """Adam's rate is lr / sqrt n for W (m, n) and for tables (vocabulary, n), lr for readouts, norms and biases, times 1 / sqrt L for
    tensors of the `depth` = L blocks of `stack`. Weight decay does not depend on the rate: a share of the inner rule's `weight_decay` a step.

    For weights that start at N(0, 1) in y = W x / sqrt n (readouts: / n), which `deltaw.umup` makes of a model. readouts: tensors
    of size one in a layer that divides by n. turned: tensors stored (n, m). inner: a rule that steps like Adam. Source: Blake et
    al. 2024 and the authors' `unit_scaling.optim`. Trap: weight decay is divided by the rate given here, not by a schedule's.
    """

    readouts: tuple = ()  # type: ignore[type-arg]
    turned: tuple = ()  # type: ignore[type-arg]
    stack: str = ""
    depth: int = 1
    inner: object = AdamW()

    def factor(self, name: str, p: torch.Tensor) -> float:
        """What the rate of this tensor is multiplied by."""
        deep = self.depth**-0.5 if self.stack and name.startswith(f"{self.stack}.") else 1.0
        if p.dim() < 2 or name in self.readouts:
            return deep
        fan_in = p.shape[0] if name in self.turned else p[0].numel()
        return float(deep * fan_in**-0.5)

    def optimizer(self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any) -> torch.optim.Optimizer:
        def both(name: str, p: nn.Parameter) -> tuple[float, float]:
            f = self.factor(name, p)
            return f, 1 / (lr * f) if lr else 1.0

        return rescaled(self.inner, both, named, lr, about, **kw)
