"""LoRA-SB by hand: the first step of AdamW, made by torch's own optimiser, and its best rank-r part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaw.methods.init.lora_sb import LoRASB

from ..hand import triplets

INITS = [LoRASB(), LoRASB(step=1e-3)]


def closed(init: LoRASB, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    p = nn.Parameter(torch.zeros_like(W))
    p.grad = stats["gradient"] * 1e4  # so that epsilon does not count
    torch.optim.AdamW([p], lr=init.step, eps=1e-20, weight_decay=0.0).step()
    U, sigma, V = triplets(p.detach())
    return U[:, :r] * sigma[:r], V[:r], None
