"""Gate over LoRA, opened and closed at the start, and over a method that scales the bias too: the formulas."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.ia3 import IA3
from ...methods.structure.lora import LoRA
from ...methods.wrap.gate import Gate

METHODS = (Gate(LoRA(r=3, alpha=6.0)), Gate(LoRA(r=3, alpha=6.0), g0=0.0), Gate(IA3()))


def closed(method: Gate, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    change: Any = (p["l"] - 1) * y if "l" in p else 2.0 * (x @ p["A"].T @ p["B"].T)
    return y + p["gate"] * change
