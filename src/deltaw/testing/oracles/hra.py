"""HRA: one reflection after the other, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.hra import HRA

METHODS = (HRA(r=4), HRA(r=2))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """W (I - 2 u_1 u_1ᵀ) … (I - 2 u_r u_rᵀ) x: the last reflection meets x first."""
    for i in reversed(range(method.r)):
        u = p["U"][:, i] / p["U"][:, i].pow(2).sum().sqrt()
        x = x - 2 * (x * u).sum(-1, keepdim=True) * u
    y = x @ W.mT
    return y if b is None else y + b


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import HRAConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        u = layer.hra_u["default"]
        with torch.no_grad():
            u.copy_(p["U"])
        return {"U": lambda: u.grad}

    return HRAConfig(r=method.r, target_modules=["lin"]), put
