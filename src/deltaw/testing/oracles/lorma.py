"""LoRMA, both rank inflations on both sides: torch.roll row by row (PEFT 0.21 does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.lorma import LoRMA

METHODS = (
    LoRMA(r=3, alpha=6.0), LoRMA(r=3, alpha=6.0, side="post"),
    LoRMA(r=3, alpha=6.0, inflation="pi"), LoRMA(r=3, alpha=2.0, inflation="pi", side="post"),
)  # fmt: skip


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    M = method.alpha / method.r * (p["B"] @ p["A"])
    if method.inflation == "plus":
        F = torch.eye(len(M), dtype=M.dtype) + M
    else:
        F = torch.stack([torch.roll(row, i) for i, row in enumerate(M)])
    y = x @ (F @ W if method.side == "pre" else W @ F).mT
    return y if b is None else y + b
