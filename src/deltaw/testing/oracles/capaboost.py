"""CapaBoost: the copies one after the other, with the masks counted (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.capaboost import CapaBoost

METHODS = (CapaBoost(r=3, alpha=6.0, d=2), CapaBoost(r=4, alpha=4.0, d=3, mask="2:4"))


def closed(method: CapaBoost, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for MA, MB in zip(p["MA"], p["MB"], strict=True):
        assert int(MA.sum()) == MA.numel() // 2 and int(MB.sum()) == MB.numel() // 2
        A, B = torch.where(MA, p["A"], 0.0), torch.where(MB, p["B"], 0.0)
        y = y + method.alpha / method.r * (x @ A.T @ B.T)
    return y
