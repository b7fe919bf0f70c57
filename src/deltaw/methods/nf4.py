"""NormalFloat4 in plain torch: what a weight becomes when it is quantised to four bits and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codecs import levels

NF4 = levels(4)
"""The 16 numbers of NormalFloat4: see deltaw.codecs.nf."""


def nf4(W: Tensor, block: int = 64) -> Tensor:
    """W rounded to NF4 and back, with the largest size of every `block` entries in a row as their unit."""
    flat = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % block)).view(-1, block)
    unit = flat.abs().amax(1, keepdim=True).clamp(min=1e-30)
    table = torch.tensor(NF4).to(W)
    codes = torch.bucketize((flat / unit).contiguous(), (table[1:] + table[:-1]) / 2)
    return (table[codes] * unit).flatten()[: W.numel()].view(W.shape)
