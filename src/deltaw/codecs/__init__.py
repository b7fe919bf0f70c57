"""Codecs: a weight as a few small tensors and back. In plain torch, on any device.

A codec is a frozen dataclass with `encode(W) -> {name: tensor}`, `decode(parts, shape) -> W^` (float32) and `bits(m, n)`, the bits a number of an
m x n weight costs by its formula, so that allocators can price it. What is stored are the parts: their bytes are the formula's, up to the padding
of last blocks. deltaw.quantise puts them into layers.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from .affine import Affine
from .blocks import FORMATS, GGUF
from .nf import NF, Dynamic, Plain, Unsigned, levels
from .pack import packed, unpacked

Parts = dict[str, Tensor]


class Codec(Protocol):
    """See the module."""

    def encode(self, W: Tensor) -> Parts: ...

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Tensor: ...

    def bits(self, m: int, n: int) -> float: ...


NAMES: dict[str, Any] = {
    "nf4": NF(4, 64, Dynamic()), "nf3": NF(3, 64, Dynamic()), "nf2": NF(2, 64, Dynamic()), "nf8": NF(8, 64, Dynamic()),
    "int4": Affine(4, 128), "int8": Affine(8, 128),
}  # fmt: skip

__all__ = ["FORMATS", "GGUF", "NAMES", "NF", "Affine", "Codec", "Dynamic", "Plain", "Unsigned", "levels", "packed", "unpacked"]
