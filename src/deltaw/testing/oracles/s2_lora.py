"""S2-LoRA: the sum over ranks (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.s2_lora import S2LoRA

METHOD = S2LoRA(r=4, alpha=6.0)


def closed(method: S2LoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = sum((p["l"][k] * torch.outer(p["B"][:, k], p["A"][k]) for k in range(method.r)), torch.zeros_like(W))
    return F.linear(x, W + method.alpha / method.r * change, b)
