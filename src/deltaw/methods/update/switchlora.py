"""AdamW that counts the steps of every vector of the factors for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import NOTHING, About, update
from .algebra import Plain, Rule, Step, SubOptimizer, Unit


@dataclass(frozen=True)
class Vectors(Rule):
    """AdamW with a number of steps for every row (axis 0) or column (axis 1) in the bias correction."""

    axis: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        (b1, b2), t, s, G = self.betas, p["W"], state["W"], g["W"]
        if "step" not in s:
            shape = [1, 1]
            shape[self.axis] = t.shape[self.axis]
            s |= {"step": t.new_zeros(shape, dtype=torch.float32), "m": torch.zeros_like(t), "v": torch.zeros_like(t)}
        steps = s["step"].add_(1).double()
        s["m"].lerp_(G, 1 - b1)
        s["v"].mul_(b2).addcmul_(G, G, value=1 - b2)
        t.mul_(1 - now.lr["W"] * now.decay["W"])
        root = s["v"].sqrt().div_((1 - b2**steps).sqrt().to(t)).add_(self.eps)
        t.sub_((now.lr["W"] / (1 - b1**steps)).to(t) * s["m"] / root)


@update(paper="arXiv:2406.06564")
class SwitchLoRA:
    """torch's AdamW, where every row of A and every column of B has its own step count t in 1 - beta^t.

    With the rule `switchlora` a vector whose partner was switched starts again alone, its count at 0. Without such a rule
    it is AdamW. State: 2 r (m + n) moments and 2 r counts. What is no factor: AdamW. Source: Zhou et al. 2024, their
    optimiser. Trap: a vector's count goes on while it rests, so its first moves are shorter than lr.
    """

    weight_decay: float = 0.0
    pairs: ClassVar[bool] = True

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for the two factors of an m x n matrix."""
        return 2 * r * (m + n) + 2 * r

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> SubOptimizer:
        rules = {"A": Vectors(0), "B": Vectors(1)}
        units = [
            Unit(k, rules.get(k.rpartition(".")[2], Plain()) if p.dim() == 2 else Plain(), {"W": p})
            for k, p in named.items()
        ]
        return SubOptimizer([{"params": list(named.items())}], units, lr, **{"weight_decay": self.weight_decay, **kw})
