"""LoRMA: the weight is multiplied by a low-rank matrix whose rank has been inflated."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...ops import Eye, Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, method, zeros
from ..factors import positive
from ..rolled import Rolled


@method(paper="arXiv:2506.07621", start="rounding", claims=("LoRA's quality after fewer steps", "no bound on the rank of the change"))
class LoRMA(Method):
    """side "pre": W' = F W; "post": W' = W F, y = W' x + b0. B (d, r), A (r, d) trained, d = m or n, s = alpha / r.

    inflation "plus": F = I + s B A. "pi": F = s roll(B A), row i moved i places to the right, cyclically: its rank can reach d.
    Start: plus B = 0, A ~ U(±1/sqrt d); pi B ~ U(±1/sqrt r) with a first column of ones, A = 0 but A[0, 0] = 1, both over
    sqrt(s), so that F = I. Trained per site: 2 d r. Exact LoRA rank of plus: r; of pi none.
    2 d r operations a token; pi: r FFTs of size d a token or, for many tokens, F built once a step.
    Source: Bihany et al. 2025. Trap: with neither inflation F has rank r and the model collapses; it is left out. The authors
    drop out the input of the whole layer, W included: no adapter dropout is the same.

    >>> from deltaw.methods import LoRMA
    >>> {k: v.shape for k, v in LoRMA(r=4).params(10, 6).items()}
    {'B': (10, 4), 'A': (4, 10)}
    """

    r: int = 8
    alpha: float = 8.0
    inflation: Literal["plus", "pi"] = "plus"
    side: Literal["pre", "post"] = "pre"

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        d = m if self.side == "pre" else n
        if self.inflation == "plus":
            return {"B": Param((d, self.r), zeros), "A": Param((self.r, d), kaiming)}
        root = math.sqrt(self.scale)

        def left(start: Start, shape: tuple[int, ...]) -> Tensor:
            return torch.cat([torch.ones(d, 1, dtype=torch.float64), kaiming(start, shape)[:, 1:]], 1) / root

        def right(_: Start, shape: tuple[int, ...]) -> Tensor:
            return torch.nn.functional.pad(torch.full((1, 1), 1 / root, dtype=torch.float64), (0, d - 1, 0, self.r - 1))

        return {"B": Param((d, self.r), left), "A": Param((self.r, d), right)}

    def weight(self, W: Op, p: Tensors) -> Op:
        plus = self.inflation == "plus"
        F = Eye(len(p.B), p.B) + self.scale * chain(p.B, p.A) if plus else Rolled(self.scale * p.B, p.A)
        return chain(F, W) if self.side == "pre" else chain(W, F)
