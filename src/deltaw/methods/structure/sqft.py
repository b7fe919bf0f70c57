"""SQFT's SparsePEFT: a LoRA that keeps the zeros of a sparse base, so that its merge does too."""

from __future__ import annotations

from torch import Tensor

from ...ops import Dense, Op
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, method
from ..factors import positive


def kept(start: Start, _: tuple[int, ...]) -> Tensor:
    """Where W is not 0."""
    return (start.dense() != 0).float()


@method(paper="arXiv:2410.03750", start="rounding", claims=("a merged sparse model is as accurate as the unmerged one",))
class SQFT(Method):
    """W' = W + (s B A) * M, M = 1 where W is not 0; s = alpha / r. A (r, n), B (m, r) trained, M (m, n) frozen.

    Start: A ~ U(±1/sqrt n), B = 0: the base's first output. Zeros stay zeros in every merge. Count: r (m + n). Costs the m x n product
    B A in a forward, because of the mask: 2 r m n a step, and is of no low rank. Sparsify the base first: deltaw.compress(model, "shears").
    Source: Muñoz et al. 2024 and its code. Trap: on a dense base it is LoRA at the price of full weights; M is as large as W (a byte an entry).

    >>> from deltaw.methods import SQFT
    >>> {k: (p.shape, p.train) for k, p in SQFT(r=4).params(10, 8).items()}["M"]
    ((10, 8), False)
    """

    r: int = 32
    alpha: float = 64.0

    @property
    def least_rank(self) -> int:
        return self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"A": Param((self.r, n), kaiming), "B": Param((m, self.r)), "M": Param((m, n), kept, train=False)}

    def weight(self, W: Op, p: Tensors) -> Op:
        w = W.dense()
        return Dense(w + ((self.alpha / self.r) * (p.B @ p.A) * p.M).to(w.dtype))
