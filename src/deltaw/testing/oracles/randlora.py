"""RandLoRA: the closed form, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.randlora import RandLoRA

METHODS = (RandLoRA(r=4, alpha=6.0), RandLoRA(r=3, alpha=6.0))
METHOD = METHODS[0]


def closed(method: RandLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The sum over all pairs (k, j), one rank-one term at a time."""
    r, N = p["Lambda"].shape
    columns = p["B"].reshape(p["B"].shape[0], -1)
    D = torch.zeros(columns.shape[0], p["A"].shape[1], dtype=W.dtype)
    for k in range(r):
        for j in range(N):
            D = D + p["Lambda"][k, j] * torch.outer(columns[:, k * N + j], p["A"][k] * p["Gamma"][j])
    y = x @ (W + method.alpha / method.r * (D if D.shape == W.shape else D.mT)).mT
    return y if b is None else y + b


def peft(method: RandLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import RandLoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        L, G = layer.randlora_lambda["default"], layer.randlora_gamma["default"]
        layer.randlora_A["default"], layer.randlora_B["default"] = p["A"][:, None], p["B"]
        L.data.copy_(p["Lambda"])
        G.data.copy_(p["Gamma"])
        return {"Lambda": lambda: L.grad, "Gamma": lambda: G.grad}

    return RandLoraConfig(r=method.r, randlora_alpha=method.alpha, target_modules=["lin"]), put
