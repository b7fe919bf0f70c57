"""SingLoRA: the square product, cut to the layer's shape (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.singlora import SingLoRA

METHOD = SingLoRA(r=3, alpha=6.0, T=5)


def closed(method: SingLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    square = p["A"] @ p["A"].T
    change = method.alpha / method.r * p["u"] * square[: W.shape[0], : W.shape[1]]
    return F.linear(x, W + change, b)
