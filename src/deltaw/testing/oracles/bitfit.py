"""BitFit, alone and beside LoRA: the formula, and HF PEFT's LoRA with its biases trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lora import LoRA
from ...methods.wrap.bitfit import BitFit

METHODS = (BitFit(), BitFit(LoRA(r=3, alpha=6.0)))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, p.get("bias"))
    return y + 2.0 * (x @ p["A"].mT @ p["B"].mT) if method.inner else y


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import LoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        theirs = {"A": A, "B": B} | ({"bias": layer.base_layer.bias} if "bias" in p else {})
        with torch.no_grad():
            B.zero_()  # alone: a LoRA that does nothing
            for name in p:
                theirs[name].copy_(p[name])
        return {name: lambda t=theirs[name]: t.grad for name in p}  # type: ignore[misc]

    return LoraConfig(r=3, lora_alpha=6, bias="lora_only", target_modules=["lin"]), put
