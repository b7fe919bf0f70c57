"""AdaLoRA: direction by direction, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.adalora import AdaLoRA

METHOD = AdaLoRA(r=3, alpha=6.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for k in range(method.r):
        y = y + method.alpha / (method.r + 1e-5) * p["E"][k] * (x @ p["Q"][k])[..., None] * p["P"][:, k]
    return y


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import AdaLoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        P, E, Q = (getattr(layer, f"lora_{w}")["default"] for w in "BEA")
        with torch.no_grad():
            P.copy_(p["P"])
            E.copy_(p["E"][:, None])
            Q.copy_(p["Q"])
        return {"P": lambda: P.grad, "E": lambda: E.grad[:, 0], "Q": lambda: Q.grad}

    return AdaLoraConfig(init_r=method.r, lora_alpha=method.alpha, total_step=10, target_modules=["lin"]), put
