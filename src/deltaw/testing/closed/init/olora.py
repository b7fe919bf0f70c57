"""OLoRA by hand: Gram-Schmidt on the columns of W."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.olora import OLoRA

INITS = [OLoRA()]
PEFT = "olora against PEFT's"


def closed(init: OLoRA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, Tensor]:
    Q: list[Tensor] = []
    for k in range(r):
        v = W[:, k].clone()
        for q in Q + Q:  # twice is enough
            v = v - (q @ v) * q
        Q.append(v / v.norm())
    B = torch.stack(Q, 1)
    return B, B.T @ W, -s * B @ B.T @ W
