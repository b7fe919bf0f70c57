"""DeLoRA: rank by rank, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.delora import DeLoRA

METHOD = DeLoRA(r=4, strength=3.0)


def closed(method: DeLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = torch.zeros_like(W)
    for a_i, b_i in zip(p["A"], p["B"].mT):
        size = a_i.square().sum().sqrt().clamp(min=1e-4) * b_i.square().sum().sqrt().clamp(min=1e-4)
        change = change + torch.outer(b_i, a_i) / size
    torch.testing.assert_close(p["w"], W.square().sum(0).sqrt())
    return F.linear(x, W + p["l"] / method.r * change * p["w"], b)


def peft(method: DeLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import DeloraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B, strength = (getattr(layer, f"delora_{k}")["default"] for k in ("A", "B", "lambda"))
        for theirs, name in ((A, "A"), (B, "B"), (strength, "l")):
            theirs.data.copy_(p[name])
        torch.testing.assert_close(layer.delora_w_norm["default"], p["w"])
        return {"A": lambda: A.grad, "B": lambda: B.grad, "l": lambda: strength.grad}

    return DeloraConfig(r=method.r, delora_lambda=int(method.strength), target_modules=["lin"]), put
