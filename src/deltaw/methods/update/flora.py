"""Flora: Adafactor whose momentum is kept in a random projection that is never stored."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from . import update
from .algebra import Adafactor, Ema, MatrixUpdate, Move, Raw, Relative, Sketch, Sub, Whole


@update(paper="arXiv:2402.03293")
class Flora(MatrixUpdate):
    """u = G / sqrt v̂ (row and column means, beta2 = 1 - t^-0.8); D = (1 - beta) u + beta up(M); M <- beta M + (1 - beta) down u;
    W <- W - lr max(1e-3, RMS W) D / max(1, RMS D).

    down: P ~ N(0, 1/r) on the smaller side, made again from its key; every `every` steps a new P, M <- down_new(up_old(M)); D in that
    step is the old frame's. State of an m x n matrix, m <= n: n r + m + n numbers. Matrices narrower than r or longer than 4 times
    their width, and what is no matrix, keep M whole. Source: Hao et al. 2024, and their torch code (their optax code projects twice
    with one key); the move falls on steps 0, T, 2T..., theirs one step before. Trap: the rate is relative to RMS W: Adafactor's, not Adam's.
    """

    r: int | float = 256
    every: int = 1000
    beta: float = 0.9
    clip: float = 1.0
    weight_decay: float = 0.0

    def rule(self, shape: tuple[int, ...] = ()) -> Sub:
        words: Any = {
            "inner": Ema(self.beta, corrected=False),
            "first": Adafactor(clip=math.inf),
            "finish": Relative(self.clip),
        }
        if len(shape) != 2 or min(shape) < self.r or max(shape) > 4 * min(shape):
            return Sub(Whole(), every=0, **words)
        return Sub(Sketch(self.r), residual=Raw(1 - self.beta, self.beta), carry=Move(), every=self.every, **words)

    def of(self, name: str, p: nn.Parameter, lr: float) -> Sub:
        return self.rule(tuple(p.shape))

    def plain(self) -> Sub:
        return self.rule()

    def floats(self, m: int, n: int) -> int:
        return self.rule((m, n)).floats(m, n)
