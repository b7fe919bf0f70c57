"""QLoRA's base: 4-bit NormalFloat with double quantisation."""

from __future__ import annotations

from torch import Tensor

from ...codecs import NF, Dynamic
from . import compressor


@compressor(paper="arXiv:2305.14314")
class QLoRA:
    """W^ = decode(encode(W)): NF-b in blocks, scales in 8 bits: 4.127 bits a number at b = 4. deltaw.quantise(model, "nf4"), then a LoRA of
    r = 64, alpha = 16 on all linear layers; gradients go through W^ to the input, never to codes. Source: Dettmers et al. 2023.
    Trap: what is merged back into codes loses much of a small change (deltaw.requantise states how much).
    """

    b: int = 4
    block: int = 64
    outer: int = 256

    def codec(self) -> NF:
        return NF(self.b, self.block, Dynamic(self.outer))

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor]:
        codec = self.codec()
        return (codec.decode(codec.encode(W), (W.shape[0], W.shape[1])).to(W.dtype),)
