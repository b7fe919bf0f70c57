"""GaLore+: one frame for all heads of an attention projection, and Adam on the largest entries of the rest."""

from __future__ import annotations

from torch import nn

from . import update
from .algebra import Adam, Frame, HeadShared, MatrixUpdate, Rsvd, Side, Sparse, Sub

QUERY, KEY_VALUE = ("q_proj", "query", "q_lin"), ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin")


@update(paper="arXiv:2412.19820")
class GaLorePlus(MatrixUpdate):
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

    def of(self, name: str, p: nn.Parameter, lr: float) -> Sub:
        return self.rule(name)
