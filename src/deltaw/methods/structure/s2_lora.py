"""S2-LoRA: one pair of factors for all weights of a shape, sparse coefficients for each."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive
from ..rules.shrink import Shrink


@method(paper="arXiv:2309.11756", claims=("AdaLoRA's accuracy in its domain with fewer parameters, better outside it",))
class S2LoRA(Method):
    """y = W x + b + s B diag(l) A x, s = alpha / r. A (r, n), B (m, r) trained, one pair for all sites of shape m x n;
    l (r,) trained at every site.

    Start: A, B ~ U(±1/sqrt fan-in), l = 0: the base's first output, and l learns first. Trained: r a site, and r (m + n)
    a shape. Exact LoRA rank: r; with zeros in l, the number of the others. Source: Liu et al. 2023, where the sharing and
    sparse l are certain; start, s, sizes, and a pair for each shape are our reading.
    After each step l <- sign(l) max(|l| - shrink, 0): the step of a penalty mu sum |l|, shrink = lr mu, 0 for none.
    Trap: the penalty as a part of the loss never gives an exact zero under Adam. Shapes cannot share a pair.

    >>> from deltaw.methods import S2LoRA
    >>> {k: (v.shape, v.scope) for k, v in S2LoRA(r=4).params(10, 6).items()}
    {'A': ((4, 6), '10x6'), 'B': ((10, 4), '10x6'), 'l': ((4,), 'site')}
    """

    r: int = 32
    alpha: float = 32.0
    shrink: float = 1e-5

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        if self.shrink < 0.0:
            raise SpecError(f"s2_lora shrinks l by 0 or more after a step; found shrink = {self.shrink}")
        group = f"{m}x{n}"
        A, B = Param((self.r, n), kaiming, scope=group), Param((m, self.r), kaiming, scope=group)
        return {"A": A, "B": B, "l": Param((self.r,))}

    def rules(self) -> tuple[Any, ...]:
        return (Shrink(tensor="l", by=self.shrink),) if self.shrink else ()

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.l, p.A)
