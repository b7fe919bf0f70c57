"""Affine whole numbers in groups along the input: s (q - z)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .pack import packed, unpacked


def grid(W: Tensor, b: int, group: int) -> tuple[Tensor, Tensor]:
    """(s, z), each (m, groups): s = (max - min) / (2^b - 1) with 0 inside the range, z = round(-min / s): 0 is exactly the code z."""
    n = W.shape[1]
    many = torch.nn.functional.pad(W.detach().float(), (0, -n % group)).reshape(len(W), -1, group)
    low, high = many.amin(2).clamp(max=0), many.amax(2).clamp(min=0)
    s = (high - low) / (2**b - 1)
    s = torch.where(s > 0, s, torch.ones_like(s))
    return s, (-low / s).round().clamp(0, 2**b - 1)


def spread(t: Tensor, group: int, n: int) -> Tensor:
    """(m, groups) -> (m, n)."""
    return t.repeat_interleave(group, 1)[:, :n]


def codes_of(W: Tensor, s: Tensor, z: Tensor, b: int) -> Tensor:
    """clamp(round(W / s + z), 0, 2^b - 1) for s, z spread over the columns."""
    return (W / s + z).round().clamp(0, 2**b - 1)


@dataclass(frozen=True)
class Affine:
    """b bits, groups of `group` along each row, s in float32 and z in 8 bits a group."""

    b: int = 4
    group: int = 128

    def encode(self, W: Tensor) -> dict[str, Tensor]:
        s, z = grid(W, self.b, self.group)
        n = W.shape[1]
        q = codes_of(W.detach().float(), spread(s, self.group, n), spread(z, self.group, n), self.b)
        return {"codes": packed(q.flatten(), self.b), "s": s, "z": z.to(torch.uint8)}

    def decode(self, parts: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        q = unpacked(parts["codes"], self.b, shape[0] * shape[1]).view(shape)
        s, z = (spread(parts[k].float(), self.group, shape[1]) for k in "sz")
        return s * (q - z)

    def bits(self, m: int, n: int) -> float:
        groups = -(-n // self.group)
        return self.b + 40 * groups / n
