"""Codes of b bits without gaps: eight of them are b bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(codes: Tensor, b: int) -> Tensor:
    """Whole numbers below 2^b (N,) -> uint8; N is padded to a multiple of eight with zeros. Of two 4-bit codes the first is the low nibble."""
    if b == 8:
        return codes.to(torch.uint8)
    grouped = torch.nn.functional.pad(codes.flatten().to(torch.int64), (0, -codes.numel() % 8)).view(-1, 8)
    word = (grouped << (b * torch.arange(8, device=codes.device))).sum(1)
    out: Tensor = (word[:, None] >> (8 * torch.arange(b, device=codes.device))) & 255
    return out.to(torch.uint8).flatten()


def unpacked(stored: Tensor, b: int, count: int) -> Tensor:
    """The first `count` codes, int32."""
    if b == 8:
        return stored[:count].to(torch.int32)
    if b == 4:
        return torch.stack([stored & 15, stored >> 4], 1).flatten()[:count].to(torch.int32)
    groups = stored.view(-1, b).to(torch.int64)
    word = (groups << (8 * torch.arange(b, device=stored.device))).sum(1)
    out: Tensor = (word[:, None] >> (b * torch.arange(8, device=stored.device))) & (2**b - 1)
    return out.flatten()[:count].to(torch.int32)
