"""LoRA-FA: the formula, and HF PEFT's LoRA, whose A its optimiser leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lora_fa import LoRAFA

METHOD = LoRAFA(r=3, alpha=6.0)


def closed(method: LoRAFA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W, b) + method.alpha / method.r * (x @ p["A"].T @ p["B"].T)


def peft(method: LoRAFA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        A.data.copy_(p["A"])
        B.data.copy_(p["B"])
        return {"B": lambda: B.grad}

    return LoraConfig(r=method.r, lora_alpha=method.alpha, target_modules=["lin"]), put
