"""AdamW whose rows or columns (or single numbers, of a vector) have each their own age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .optimizer import Rule, Step


@dataclass(frozen=True)
class Vectors(Rule):
    """AdamW with a number of steps for every row (axis 0) or column (axis 1) in the bias correction; in a vector for every number."""

    axis: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        (b1, b2), t, s, G = self.betas, p["W"], state["W"], g["W"]
        if "step" not in s:
            shape = [1] * t.dim()
            shape[self.axis] = t.shape[self.axis]
            s |= {"step": t.new_zeros(shape, dtype=torch.float32), "m": torch.zeros_like(t), "v": torch.zeros_like(t)}
        steps = s["step"].add_(1).double()
        s["m"].lerp_(G, 1 - b1)
        s["v"].mul_(b2).addcmul_(G, G, value=1 - b2)
        t.mul_(1 - now.lr["W"] * now.decay["W"])
        root = s["v"].sqrt().div_((1 - b2**steps).sqrt().to(t)).add_(self.eps)
        t.sub_((now.lr["W"] / (1 - b1**steps)).to(t) * s["m"] / root)
