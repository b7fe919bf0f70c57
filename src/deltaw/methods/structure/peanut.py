"""PEANuT: the update is what a small network makes of the weight itself."""

from __future__ import annotations

import torch

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2410.01870", claims=("as expressive as linear updates or more, at their count or less",))
class PEANuT(Method):
    """W' = W + s B Z, Z (r, n) a network of W: Z_0 = f(A W), Z_i = f(E_i Z_(i-1)), then back up by Z <- f(D_i Z) + the
    Z that E_i was given, last first. f = relu, `depth` layers E and as many D; A (r, m), B (m, r), E and D (depth, r, r).

    The decoder's D_1 is applied first, to the output of the last encoder. Start: B = 0, the base's first output; A, E, D ~
    U(±1/sqrt fan-in). Count: 2 m r + 2 depth r². For a given W exactly a LoRA of rank r, B and Z its factors: m n r
    operations a step to make Z, then r (m + n) a token. Z reads W: a quantised base is decoded in every step.
    Source: Zhong et al. 2024; s, start and defaults as in HF PEFT.
    Trap: the network sees the base's W: merging one adapter and then training another is another model.

    >>> from deltaw.methods import PEANuT
    >>> {k: v.shape for k, v in PEANuT(r=4, depth=1).params(10, 6).items()}
    {'A': (4, 10), 'B': (10, 4), 'E': (1, 4, 4), 'D': (1, 4, 4)}
    """

    r: int = 32
    depth: int = 0
    s: float = 1.0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        if self.depth < 0:
            raise SpecError(f"peanut's depth is 0 or more; found {self.depth}")
        square = Param((self.depth, self.r, self.r), kaiming)
        inner = {"E": square, "D": square} if self.depth else {}
        return {"A": Param((self.r, m), kaiming), "B": Param((m, self.r)), **inner}

    def weight(self, W: Op, p: Tensors) -> Op:
        w = W.dense()
        Z = torch.relu(p.A @ w.to(p.A.dtype))
        kept = []
        for i in range(self.depth):
            kept.append(Z)
            Z = torch.relu(p.E[i] @ Z)
        for i in range(self.depth):
            Z = torch.relu(p.D[i] @ Z) + kept.pop()
        return W + self.s * chain(p.B, Z)
