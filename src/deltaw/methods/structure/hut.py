"""HUT: the base weight times a low-rank gate, entry by entry."""

from __future__ import annotations

import torch

from ...ops import Hadamard, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2409.13501", start="rounding", claims=("LoRA's quality on GLUE and E2E at fewer training FLOPs",))
class HUT(Method):
    """W' = W ⊙ (1 + s M_A M_B), y = W' x + b, s = alpha / r. M_A (m, r), M_B (r, n) trained, r (m + n) per site.

    The gate is one product of rank r + 1, [1, s M_A] [1; M_B], so a step costs m n (r + 1) once and then one product with W'
    and no other: less than LoRA once there are more tokens than about m n / (m + n). Needs the dense W.
    Start: M_A = 0, M_B ~ U(±1/sqrt n): the base's first output up to rounding. The change has rank up to r · rank W; no plain
    LoRA equals it.
    Source: Zhang, Zhou, Chen 2024. Only its abstract ("Hadamard transformation with two low-rank matrices", a map of the old
    weight to the new) could be read: the 1 +, the scale and the start are this reading. With s = 1 it is HiRA's weight,
    evaluated in one product. Trap: a zero of W stays zero.

    >>> from deltaw.methods import HUT
    >>> {k: v.shape for k, v in HUT(r=4).params(10, 6).items()}
    {'M_A': (10, 4), 'M_B': (4, 6)}
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"M_A": Param((m, self.r)), "M_B": Param((self.r, n), kaiming)}

    def weight(self, W: Op, p: Tensors) -> Op:
        one = torch.ones_like(p.M_A[:, :1]), torch.ones_like(p.M_B[:1])
        return Hadamard(W, chain(torch.cat([one[0], self.scale * p.M_A], 1), torch.cat([one[1], p.M_B], 0)))
