"""NormalFloat with block scales, and three ways to keep the scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import SpecError
from .pack import packed, unpacked

OFFSET = 0.9677083


@cache
def levels(b: int) -> tuple[float, ...]:
    """The 2^b numbers of NF-b: quantiles of N(0, 1), one more above 0 than below, divided by the largest (Dettmers et al. 2023)."""
    if not 2 <= b <= 8:
        raise SpecError(f"NormalFloat has 2 to 8 bits; found {b}")

    def side(count: int) -> Tensor:
        found: Tensor = torch.special.ndtri(torch.linspace(OFFSET, 0.5, count + 1, dtype=torch.float64)[:-1])
        return found

    up, down = side(2 ** (b - 1)), side(2 ** (b - 1) - 1)
    found = torch.cat([-down, torch.zeros(1, dtype=torch.float64), up.flip(0)])
    return tuple((found / up.max()).tolist())


@cache
def dynamic() -> tuple[float, ...]:
    """The 256 numbers of the 8-bit dynamic map: for i = 0 .. 6 ±10^(i - 6) times the 2^i midpoints of equal parts of [0.1, 1]; 0 and 1."""
    found = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        for v in ((ends[1:] + ends[:-1]) / 2 * 10.0 ** (i - 6)).tolist():
            found += [v, -v]
    return tuple(sorted(found))


def nearest(x: Tensor, table: Tensor) -> Tensor:
    return torch.bucketize(x.contiguous(), (table[1:] + table[:-1]) / 2)


def blocks(x: Tensor, size: int) -> Tensor:
    """(count, size), the last block filled with zeros."""
    return torch.nn.functional.pad(x.flatten(), (0, -x.numel() % size)).view(-1, size)


@dataclass(frozen=True)
class Plain:
    """Scales as they are, in float32."""

    def encode(self, scales: Tensor) -> dict[str, Tensor]:
        return {"scales": scales.float()}

    def decode(self, parts: dict[str, Tensor], count: int) -> Tensor:
        return parts["scales"]

    def bits(self) -> float:
        return 32.0


@dataclass(frozen=True)
class Dynamic:
    """Double quantisation: minus their mean, in blocks, each by its largest size, to the nearest of the 8-bit dynamic map."""

    block: int = 256

    def encode(self, scales: Tensor) -> dict[str, Tensor]:
        mean = scales.float().mean()
        many = blocks(scales.float() - mean, self.block)
        unit = many.abs().amax(1, keepdim=True)
        table = torch.tensor(dynamic(), device=scales.device, dtype=torch.float32)
        codes = nearest(many / unit.clamp(min=1e-30), table).flatten()[: scales.numel()]
        return {"scales": codes.to(torch.uint8), "units": unit[:, 0], "mean": mean[None]}

    def decode(self, parts: dict[str, Tensor], count: int) -> Tensor:
        table = torch.tensor(dynamic(), device=parts["scales"].device, dtype=torch.float32)
        return table[parts["scales"].long()] * parts["units"].repeat_interleave(self.block)[:count] + parts["mean"]

    def bits(self) -> float:
        return 8 + 32 / self.block


@dataclass(frozen=True)
class Unsigned:
    """LQ-LoRA's: whole numbers of b bits from each block's least scale, in steps kept as `dtype`; weights are then encoded
    against the scales that come back."""

    b: int = 8
    block: int = 256
    dtype: torch.dtype = torch.float32

    def encode(self, scales: Tensor) -> dict[str, Tensor]:
        many = scales.float().flatten()
        many = torch.cat([many, many[-1:].expand(-many.numel() % self.block)]).view(-1, self.block)
        least, most = many.aminmax(dim=1, keepdim=True)
        least = least.to(self.dtype).float()
        step = ((most - least).clamp(min=0) / (2**self.b - 1)).to(self.dtype).float()
        codes = torch.where(step > 0, (many - least) / step.clamp(min=1e-38), 0.0).round().clamp(0, 2**self.b - 1)
        return {"scales": packed(codes.flatten()[: scales.numel()], self.b), "steps": step[:, 0].to(self.dtype), "least": least[:, 0].to(self.dtype)}

    def decode(self, parts: dict[str, Tensor], count: int) -> Tensor:
        codes = unpacked(parts["scales"], self.b, count).float()
        step, least = (parts[k].float().repeat_interleave(self.block)[:count] for k in ("steps", "least"))
        return codes * step + least

    def bits(self) -> float:
        """As the paper prices it: the step's, not the offset's, second level."""
        return self.b + torch.finfo(self.dtype).bits / self.block


@dataclass(frozen=True)
class NF:
    """Row by row in blocks; the scale of a block is its largest size, a code the nearest level of w / scale."""

    b: int = 4
    block: int = 64
    scales: Plain | Dynamic | Unsigned = Plain()

    def encode(self, W: Tensor) -> dict[str, Tensor]:
        many = blocks(W.detach().float(), self.block)
        kept = self.scales.encode(many.abs().amax(1))
        unit = self.scales.decode(kept, len(many)) if isinstance(self.scales, Unsigned) else many.abs().amax(1)
        table = torch.tensor(levels(self.b), device=W.device, dtype=torch.float32)
        scaled = torch.where(unit[:, None] != 0, many / torch.where(unit == 0, 1.0, unit)[:, None], 0.0)
        return {"codes": packed(nearest(scaled, table).flatten()[: W.numel()], self.b), **kept}

    def decode(self, parts: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        count = shape[0] * shape[1]
        table = torch.tensor(levels(self.b), device=parts["codes"].device, dtype=torch.float32)
        values = blocks(table[unpacked(parts["codes"], self.b, count).long()], self.block)
        unit = self.scales.decode(parts, len(values))
        return (values * unit[:, None]).flatten()[:count].view(shape)

    def bits(self, m: int, n: int) -> float:
        return self.b + self.scales.bits() / self.block
