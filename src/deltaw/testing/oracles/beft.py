"""BEFT: the formula, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.beft import BEFT

METHOD = BEFT()


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W, b) + p["beta"]


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import BeftConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        beta = layer.beft_bias["default"]
        with torch.no_grad():
            beta.copy_(p["beta"][None])
        return {"beta": lambda: beta.grad[0]}

    return BeftConfig(target_modules=["lin"]), put
