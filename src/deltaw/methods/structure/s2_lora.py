"""S2-LoRA: one pair of factors for all weights of a shape, sparse coefficients for each."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2309.11756", claims=("AdaLoRA's accuracy in its domain with fewer parameters, better outside it",))
class S2LoRA(Method):
    """y = W x + b + s B diag(l) A x, s = alpha / r. A (r, n), B (m, r) trained, one pair for all sites of shape m x n;
    l (r,) trained at every site.

    Start: A, B ~ U(±1/sqrt fan-in), l = 0: the base's first output, and l learns first. Trained: r a site, and r (m + n)
    a shape. Exact LoRA rank: r; with zeros in l, the number of the others. Source: Liu et al. 2023, where the sharing and
    sparse l are certain; start, s, sizes, and a pair for each shape are our reading.
    Trap: a penalty mu sum |l| belongs to the loss, and under Adam it never gives an exact zero: shrink l after the step
    instead (l <- sign(l) max(|l| - lr mu, 0)), or cut it at the end.

    >>> from deltaw.methods import S2LoRA
    >>> {k: (v.shape, v.scope) for k, v in S2LoRA(r=4).params(10, 6).items()}
    {'A': ((4, 6), '10x6'), 'B': ((10, 4), '10x6'), 'l': ((4,), 'site')}
    """

    r: int = 32
    alpha: float = 32.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        group = f"{m}x{n}"
        A, B = Param((self.r, n), kaiming, scope=group), Param((m, self.r), kaiming, scope=group)
        return {"A": A, "B": B, "l": Param((self.r,))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.l, p.A)
