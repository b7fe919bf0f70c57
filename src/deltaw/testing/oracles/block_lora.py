"""Block-LoRA: the sum over the blocks, one after the other (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.block_lora import BlockLoRA

METHODS = (BlockLoRA(r=6, k=2, alpha=4.0), BlockLoRA(r=3, k=3))


def closed(method: BlockLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for arm in p["B"].unbind(0):
        y = y + method.alpha / method.r * (x @ p["A"].T @ arm.T)
    return y
