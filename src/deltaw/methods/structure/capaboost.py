"""CapaBoost: a pair of factors used several times under different fixed masks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Fill, Method, Param, Start, Tensors, method
from ..factors import divides, pair, positive


@method(paper="arXiv:2407.01320", claims=("rank d r with the parameters of rank r",))
class CapaBoost(Method):
    """y = W x + b + s sum_i (B ⊙ MB_i)(A ⊙ MA_i) x, i = 1..d, s = alpha / r. A (r, n), B (m, r) trained as in LoRA.

    Frozen masks MA (d, r, n), MB (d, m, r), not stored: they follow from `seed` and the site's name. floor(density · size)
    ones in each copy, anywhere, or with mask="2:4" two in every four neighbours of a row. Start: B = 0, the base's first
    output. Trained per site: r (m + n). Exact LoRA rank: d r, d r (m + n) operations a token.
    Source: Song et al., ICLR 2024; r and alpha as in its runs; plain autograd is its sum of masked gradients. Trap: their
    code zeroes one copy of B only, so it does not start at the base. Nothing is rescaled by 1 / density.

    >>> from deltaw.methods import CapaBoost
    >>> {k: v.shape for k, v in CapaBoost(r=4, d=3).params(10, 6).items()}
    {'A': (4, 6), 'B': (10, 4), 'MA': (3, 4, 6), 'MB': (3, 10, 4)}
    """

    r: int = 32
    alpha: float = 48.0
    d: int = 2
    density: float = 0.5
    mask: Literal["random", "2:4"] = "random"
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(d=self.d)
        if not 0.0 < self.density <= 1.0 or (self.mask == "2:4" and self.density != 0.5):
            raise SpecError(f"density must be in (0, 1], and 0.5 with mask='2:4'; found {self.density}, '{self.mask}'")
        if self.mask == "2:4":
            divides("a group of 2:4 masks", 4, n=n, r=self.r)
        sizes = {"MA": (self.d, self.r, n), "MB": (self.d, m, self.r)}
        masks = {k: Param(v, self.drawn(k), train=False, seed=self.seed, dtype=torch.bool) for k, v in sizes.items()}
        return pair(m, n, self.r) | masks

    def drawn(self, word: str) -> Fill:
        def draw(start: Start, shape: tuple[int, ...]) -> Tensor:
            group = 4 if self.mask == "2:4" else shape[1] * shape[2]
            start.at(f"{start.name}.{word}", self.seed)  # the stream of a seed alone would be the same at every site
            score = start.uniform((math.prod(shape) // group, group), 0.5)
            ones = score.topk(max(int(self.density * group), 1)).indices
            return torch.zeros_like(score, dtype=torch.bool).scatter_(1, ones, True).view(shape)

        return draw

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.alpha / self.r * chain((p.B * p.MB).mT.flatten(0, 1).mT, (p.A * p.MA).flatten(0, 1))
