"""NormalFloat4 in plain torch: what a weight becomes when it is quantised to four bits and back."""

from __future__ import annotations

import torch
from torch import Tensor

# the 16 numbers of NormalFloat4 (Dettmers et al. 2023): quantiles of N(0, 1), divided by the largest
NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip


def nf4(W: Tensor, block: int = 64) -> Tensor:
    """W rounded to NF4 and back, with the largest size of every `block` entries in a row as their unit."""
    flat = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % block)).view(-1, block)
    unit = flat.abs().amax(1, keepdim=True).clamp(min=1e-30)
    table = torch.tensor(NF4).to(W)
    codes = torch.bucketize((flat / unit).contiguous(), (table[1:] + table[:-1]) / 2)
    return (table[codes] * unit).flatten()[: W.numel()].view(W.shape)
