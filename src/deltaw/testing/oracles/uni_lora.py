"""Uni-LoRA: the closed form with a dense P, and HF PEFT given our indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.uni_lora import UniLoRA

METHODS = (UniLoRA(r=3, d=50), UniLoRA(r=2, d=150))
METHOD = METHODS[0]


def closed(method: UniLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    (m, n), r = W.shape, method.r
    P = torch.zeros(r * (m + n), method.d, dtype=W.dtype)
    for i, j in enumerate(p["I"].tolist()):
        P[i, j] = 1.0
    P = P / P.sum(0).clamp_min(1.0).sqrt()  # one site: its entries are all there are
    phi = P @ p["theta"]
    A, B = phi[: r * n].reshape(r, n), phi[r * n :].reshape(m, r)
    y = x @ (W + B @ A).mT
    return y if b is None else y + b


def peft(method: UniLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import UniLoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theta, r, n = layer.unilora_theta_d["default"], method.r, layer.in_features
        theta.data.copy_(p["theta"])
        for name, i in (("A", p["I"][: r * n].view(r, n)), ("B", p["I"][r * n :].view(-1, r))):
            getattr(layer, f"unilora_indices_{name}")["default"] = i
            getattr(layer, f"unilora_scales_{name}")["default"] = p["c"][i]
        return {"theta": lambda: theta.grad}

    return UniLoraConfig(r=method.r, theta_d_length=method.d, target_modules=["lin"]), put
