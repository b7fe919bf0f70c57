"""LoKH: column by column (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.lokh import LoKH

METHODS = (LoKH(r=2, alpha=3.0), LoKH(r=5))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    first, second = p["B1"] @ p["A1"], p["B2"] @ p["A2"]
    D = torch.stack([torch.outer(f, g).flatten() for f, g in zip(first.unbind(1), second.unbind(1))], 1)
    y = x @ (W + method.alpha / method.r * D).mT
    return y if b is None else y + b
