"""GaLore 2: GaLore with a randomised SVD, made for large models."""

from __future__ import annotations

from . import update
from .algebra import HF_ADAM, MatrixUpdate, Rsvd, Side, Sub, Word, inner


@update(paper="arXiv:2504.20437")
class GaLore2(MatrixUpdate):
    """GaLore whose frame comes from subspace iteration on r + oversample columns, with `power` rounds.

    The sketch's numbers depend on the seed, the parameter's name and the step only, so every process has the same frame; gradients are
    averaged first. Inside `in_backward()` a layer's gradient is used and freed at once. State of an m x n matrix, m <= n:
    m r + 2 n r numbers; inner = "adam8bit": the moments take a byte each. Source: Su et al. 2025; no code of its own is public.
    Our reading: what they change in GaLore's formula is the SVD alone; their sharding (FSDP) is not here. Trap: the frame must come from
    the whole gradient, never from a shard.
    """

    r: int | float = 1024
    every: int = 500
    scale: float = 0.25
    oversample: int = 8
    power: int = 2
    inner: Word = "adam"
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        frame = Side(self.r, Rsvd(self.oversample, self.power))
        return Sub(frame, inner(self.inner, HF_ADAM), every=self.every, scale=self.scale, decay="after")
