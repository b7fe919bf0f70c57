"""PRILoRA's pruning: entries of A that are small where inputs are small become zero."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from . import Rule, rule


@rule(paper="arXiv:2401.11316")
class PRILoRA(Rule):
    """After every step x̄_j <- beta x̄_j + (1 - beta) |X_:j|, over all its micro-batches; every `every` steps the `share` lowest
    |A_ij| x̄_j become 0: in each row of A ("row"), or in all of it ("all"). Values, not gradients: they may grow again until the next time.

    Memory: x̄ (n,). Source: Benedek and Wolf 2024; every 40, share 1/2, beta 0.9 from memory; the group is not known: rows are a reading.
    """

    every: int = 40
    share: float = 0.5
    beta: float = 0.9
    group: Literal["row", "all"] = "row"

    def start(self, view: Any) -> dict[str, Tensor]:
        return {"x": torch.zeros_like(view.p.A.detach()[0])}

    def watches(self, view: Any) -> str:
        return "inputs"

    def after(self, view: Any) -> None:
        view.s["x"].lerp_(view.inputs().sqrt().to(view.s["x"]), 1 - self.beta)
        if view.step % self.every == 0:
            A = view.p.A.detach()
            score = A.abs() * view.s["x"]
            score = score if self.group == "row" else score.flatten()[None]
            lowest = score.argsort(dim=1, stable=True)[:, : int(self.share * score.shape[1])]
            view.set("A", A.reshape(score.shape).scatter(1, lowest, 0.0).view_as(A))
