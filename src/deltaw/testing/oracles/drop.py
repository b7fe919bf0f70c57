"""Drop in evaluation mode: the plain delta. (With equal draws PEFT agrees in training mode too: tests/test_methods_one.py.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lora import LoRA
from ...methods.wrap.drop import Drop

METHOD = Drop(LoRA(r=3, alpha=6.0), p=0.25)


def closed(method: Drop, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    assert isinstance(method.inner, LoRA)
    return F.linear(x, W, b) + method.inner.alpha / method.inner.r * (x @ p["A"].T @ p["B"].T)


def peft(method: Drop) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig

    assert isinstance(method.inner, LoRA)

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        A.data.copy_(p["A"])
        B.data.copy_(p["B"])
        return {"A": lambda: A.grad, "B": lambda: B.grad}

    r, alpha = method.inner.r, method.inner.alpha
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=method.p, target_modules=["lin"]), put
