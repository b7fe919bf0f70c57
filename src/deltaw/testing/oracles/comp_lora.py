"""Comp-LoRA: the closed form, with the projectors as matrices made from W (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.comp_lora import CompLoRA

METHODS = (CompLoRA(r=3, alpha=6.0, k=4), CompLoRA(r=2, k=5, side="out"), CompLoRA(r=2, k=5, side="in"))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(W)
    left, right = U[:, method.k :], Vh[method.k :]  # the complement itself: no subtraction
    D = p["B"] @ p["A"]
    D = left @ left.mT @ D if method.side != "in" else D
    D = D @ right.mT @ right if method.side != "out" else D
    y = x @ (W + method.alpha / method.r * D).mT
    return y if b is None else y + b
