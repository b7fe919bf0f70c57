"""(IA)³: the closed form and HF PEFT, on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.ia3 import IA3

METHODS = (IA3(), IA3(side="in"))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """y = l ⊙ (W x + b), or y = W (l ⊙ x) + b."""
    y = (x * p["l"] if method.side == "in" else x) @ W.mT
    y = y if b is None else y + b
    return y if method.side == "in" else y * p["l"]


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import IA3Config

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        scale = layer.ia3_l["default"]
        with torch.no_grad():
            scale.copy_(p["l"].reshape(scale.shape))
        return {"l": lambda: scale.grad.flatten()}

    inputs = ["lin"] if method.side == "in" else []
    return IA3Config(target_modules=["lin"], feedforward_modules=inputs), put
