"""LoRA-Squeeze in training: down a ladder of ranks, each time to the nearest update of the next one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import SpecError
from .. import slots
from ..rank import budgets
from . import Rule, rule


@rule(paper="arXiv:2602.10993")
class LoRASqueeze(Rule):
    """For equal parts of the run the rank is each of `ladder`, from the plan's r down: after the last step of a part s B A = Q_B K Q_Aᵀ
    (two QRs), K = U S Vᵀ, B <- Q_B U sqrt(S / s), A <- sqrt(S / s) Vᵀ Q_Aᵀ, cut at the next rank. s = alpha / r stays, both change.

    moments: "reset" (as the factors were new), or "turn": through B' = B R, A' = L A, R = R_B⁻¹ U sqrt(S / s), L = sqrt(S / s) Vᵀ R_A⁻ᵀ,
    first ones as gradients go, second ones by the diagonal. Directions without size: a zero column of B, the old row of A.
    Source: 2026; the paper's ladder and rates could not be read: equal parts are a reading. T = 0: the run's length.
    """

    ladder: tuple[int, ...] = (64, 32, 16, 8)
    moments: Literal["reset", "turn"] = "reset"
    T: int = 0

    allocates = True

    def start(self, view: Any) -> dict[str, Tensor]:
        r = view.factors()[1].shape[0]
        if list(self.ladder) != sorted(set(self.ladder), reverse=True) or self.ladder[-1] < 1 or r not in self.ladder:
            raise SpecError(f"{view.name}: the ladder goes down and holds the plan's r; found r = {r}, ladder {self.ladder}")
        return {"T": torch.tensor(self.T or view.total)}

    def after_all(self, views: list[Any]) -> None:
        rung = budgets.rung(views[0].step / (self.T or views[0].total), len(self.ladder))
        lost, whole, k = 0.0, 0.0, self.ladder[rung]
        for view in [v for v in views if slots.count(v) > k]:
            square = slots.squeeze(view, k, self.moments == "turn").square()
            lost, whole = lost + float(square[k:].sum()), whole + float(square.sum())
        if whole:
            views[0].tell(f"lora_squeeze: rank {k}, {(lost / whole) ** 0.5:.2%} of the update lost")
