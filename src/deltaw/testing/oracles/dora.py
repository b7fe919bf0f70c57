"""DoRA over LoRA: the formula, with the norm as a constant of the backward pass, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lora import LoRA
from ...methods.wrap.dora import DoRA

METHOD = DoRA(LoRA(r=3, alpha=6.0))


def closed(method: DoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    assert isinstance(method.inner, LoRA)
    V = W + method.inner.alpha / method.inner.r * (p["B"] @ p["A"])
    c = V.detach().pow(2).sum(1).sqrt()
    return F.linear(x, (p["g"] / c)[:, None] * V, b)


def peft(method: DoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig

    assert isinstance(method.inner, LoRA)

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        g = layer.lora_magnitude_vector["default"].weight
        for theirs, name in ((A, "A"), (B, "B"), (g, "g")):
            theirs.data.copy_(p[name])
        return {"A": lambda: A.grad, "B": lambda: B.grad, "g": lambda: g.grad}

    r, alpha = method.inner.r, method.inner.alpha
    return LoraConfig(r=r, lora_alpha=alpha, use_dora=True, target_modules=["lin"]), put
