"""GaLore+: one frame for all heads of an attention projection, and Adam on the largest entries of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import NOTHING, About, update
from .algebra import Adam, Frame, HeadShared, Rsvd, Side, Sparse, Sub, matrices

QUERY, KEY_VALUE = ("q_proj", "query", "q_lin"), ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin")


@update(paper="arXiv:2412.19820")
class GaLorePlus:
    """D = scale (up(Adam(down G)) + scatter(Adam(E at Omega))), E = G - up(down G).

    In query, key and value projections (found by name) the frame is the leading right space of one head's rows of G, drawn at each refresh
    (r <= rows of a head); elsewhere GaLore's. Omega: the share of entries where |E| is largest at step `warmup`, fixed from then on.
    State of an m x n matrix, m <= n: m r + 2 n r numbers, from step `warmup` on 2 share m n more. Source: Liao et al. 2024, of which we saw the
    abstract and introduction and no code. Our reading: heads are row blocks of W (out x in); the residual has moments of its own and the
    same scale; its places come from one gradient, not from a sum over the warm-up. Trap: heads = 1 is GaLore with a right frame.
    """

    r: int | float = 128
    every: int = 200
    scale: float = 0.25
    heads: int = 1
    kv_heads: int = 0
    share: float = 0.01
    warmup: int = 100
    oversample: int = 8
    power: int = 2
    weight_decay: float = 0.0

    def rule(self, name: str = "") -> Sub:
        basis, parts = Rsvd(self.oversample, self.power), name.split(".")
        frame: Frame = Side(self.r, basis)
        if {*QUERY, *KEY_VALUE} & {*parts}:
            own = self.heads if {*QUERY} & {*parts} else self.kv_heads or self.heads
            frame = HeadShared(self.r, basis, heads=own)
        return Sub(frame, Adam(), Sparse(self.share, self.warmup), every=self.every, scale=self.scale)

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix outside attention, after the warm-up."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        kw = {"weight_decay": self.weight_decay, **kw}
        return matrices(lambda name, p: self.rule(name), named, lr, about, **kw)
