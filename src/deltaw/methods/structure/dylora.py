"""DyLoRA: one training for all ranks, by prefixes of the factors."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import RULES, Declared, Fill, Method, Param, Tensors, kaiming, method
from ..banks import leading
from ..factors import positive


@method(paper="arXiv:2210.07558", claims=("one run serves every rank up to r; a flatter curve than cutting a LoRA",))
class DyLoRA(Method):
    """y = W x + b0 + (alpha / b) B[:, :b] A[:b] x, b drawn anew for every optimiser step from 1 .. r (rule dylora); afterwards b is
    what the field `b` says, 0 being r. A (r, n), B (m, r) trained.

    frozen: only term b of a step gets gradients and moves; else all of 1 .. b. Start: A ~ U(±1/sqrt n), B = 0: the base's first
    output at every b. Count: r (m + n), b (m + n) when served. Exact LoRA rank: b. Source: Valipour et al. 2022 and its code, uniform draw,
    frozen by default as in its scripts. Trap: terms that are not drawn stand still here, where Adam's momentum would go on moving them.

    >>> from deltaw.methods import DyLoRA
    >>> {k: p.shape for k, p in DyLoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'at': (4,)}
    """

    r: int = 8
    alpha: float = 16.0
    b: int = 0
    frozen: bool = True

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        if not 0 <= self.b <= self.r:
            raise SpecError(f"dylora serves a rank b of 1 to r = {self.r} (0: all of it); found b = {self.b}")

        first: Fill = lambda start, _: leading(start.seed, 0, self.r)  # noqa: E731
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "at": Param((self.r,), first, train=False, ruled=True)}

    def weight(self, W: Op, p: Tensors) -> Op:
        if not p.training:
            b = self.b or self.r
            return W + (self.alpha / b) * chain(p.B[:, :b], p.A[:b])
        at, B, A = p.at, p.B, p.A
        if self.frozen:
            last = at - torch.cat([at[1:], at.new_zeros(1)])
            B, A = B.detach() + (B - B.detach()) * last, A.detach() + (A - A.detach()) * last[:, None]
        return W + chain(B, self.alpha * at / at.sum(), A)

    def live(self, p: Tensors) -> int:
        return self.b or self.r

    def rules(self) -> tuple[Any, ...]:
        return (RULES["dylora"](self.frozen),)
