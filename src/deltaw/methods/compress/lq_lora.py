"""LQ-LoRA's base: what is left of a weight beside a low-rank part, in codes whose settings are chosen by a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...codecs import NF, Unsigned
from .. import lq
from . import compressor


@compressor(paper="arXiv:2311.12023")
class LQLoRA:
    """W ~ L1 L2 + Q (see methods.lq.decompose): `base(weights, fishers)` gives, per site, the codec of 432 that an integer linear programme
    chose at `bits` a number on average, and W - L1 L2, which is to be encoded: deltaw.quantise(model, codecs, instead=rests). The
    init lq_lora (or loftq, without Fisher information) then sets the factors. Source: Guo et al. 2024.
    Trap: the price leaves the offsets of the second level out, as the paper's does.
    """

    r: int = 64
    bits: float = 3.0
    rounds: int = 5

    def base(
        self, weights: Mapping[str, Tensor], fishers: Mapping[str, Tensor] | None = None, choices: Any = None
    ) -> tuple[dict[str, NF], dict[str, Tensor]]:
        chosen = lq.allot(weights, self.r, self.bits, choices or lq.options(), fishers)
        rests = {}
        for name, W in weights.items():
            L1, L2, _, _ = lq.decompose(W, self.r, chosen[name], None if fishers is None else fishers[name].to(W.device), self.rounds)
            rests[name] = W.detach().float() - L1 @ L2
        return chosen, rests

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor]:
        """L1 L2 + Q with one codec, 3 bits in blocks of 64."""
        L1, L2, Q, _ = lq.decompose(W, min(self.r, *W.shape), NF(3, 64, Unsigned(8, 256)), rounds=self.rounds)
        return ((L1 @ L2 + Q).to(W.dtype),)
