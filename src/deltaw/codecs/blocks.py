"""GGUF's blocks as they lie in the file, decoded in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpecError

# name -> (numbers of a block, bytes of a block)
FORMATS = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34), "Q4_K": (256, 144)}


def half(raw: Tensor) -> Tensor:
    """Two bytes -> float16 -> float32, (..., 2) -> (..., 1)."""
    return raw.contiguous().view(torch.float16).float()


def nibbles(raw: Tensor) -> Tensor:
    """(B, k) bytes -> (B, 2 k): all low halves, then all high ones."""
    return torch.cat([raw & 15, raw >> 4], 1).float()


def q4_k(raw: Tensor) -> Tensor:
    d, least, packed, q = half(raw[:, :2]), half(raw[:, 2:4]), raw[:, 4:16].int(), raw[:, 16:]
    low, high, both = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scale = torch.cat([low & 63, (both & 15) | ((low >> 6) << 4)], 1).float() * d
    offset = torch.cat([high & 63, (both >> 4) | ((high >> 6) << 4)], 1).float() * least
    values = torch.stack([q.view(-1, 4, 32) & 15, q.view(-1, 4, 32) >> 4], 2).float().view(-1, 8, 32)
    return (scale[:, :, None] * values - offset[:, :, None]).flatten(1)


DECODERS = {
    "Q4_0": lambda raw: half(raw[:, :2]) * (nibbles(raw[:, 2:]) - 8),
    "Q4_1": lambda raw: half(raw[:, :2]) * nibbles(raw[:, 4:]) + half(raw[:, 2:4]),
    "Q8_0": lambda raw: half(raw[:, :2]) * raw[:, 2:].contiguous().view(torch.int8).float(),
    "Q4_K": q4_k,
}


@dataclass(frozen=True)
class GGUF:
    """One of FORMATS. The parts are {"raw": bytes}: there is no encoder here, blocks come from a file (or the gguf package)."""

    format: str = "Q4_1"

    def encode(self, W: Tensor) -> dict[str, Tensor]:
        raise SpecError(f"GGUF's {self.format} is decoded here, not encoded: take nf4 or int4, or quantise with llama.cpp")

    def decode(self, parts: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        raw = parts["raw"].view(-1, FORMATS[self.format][1])
        values: Tensor = DECODERS[self.format](raw)
        return values.reshape(shape)

    def bits(self, m: int, n: int) -> float:
        count, size = FORMATS[self.format]
        return 8 * size / count
