"""GraLoRA: a small LoRA for every block of the weight."""

from __future__ import annotations

from torch import Tensor

from ...ops import BlockDiag, Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import divides, down, pair, positive, up


class Shuffle(Op):
    """The permutation (i, j, q) -> (j, i, q) of k · k · q coordinates; its own transpose."""

    constant, like = True, property(lambda self: self._like)

    def __init__(self, k: int, q: int, like: Tensor):
        self.k, self.q, self._like, self.shape = k, q, like, (k * k * q, k * k * q)

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.k, self.k, self.q).transpose(-3, -2).flatten(-3)

    rmv = __call__  # type: ignore[assignment]


@method(paper="arXiv:2505.20355", claims=("outlier channels of one block leave the other blocks' gradients alone",))
class GraLoRA(Method):
    """y = W x + b + s (diag(B_1..B_k) P diag(A_1..A_k) + B_h A_h) x, s = alpha / (r + h). A (k, r, n/k), B (k, m/k, r).

    P hands chunk j of r/k coordinates of every A_i x_i to B_j: block (j, i) of the delta is a LoRA of rank r/k.
    hybrid_r = h adds a plain pair A_h (h, n), B_h (m, h). Start: A ~ U(±1/sqrt(n/k)), B = 0: the base's first output.
    Trained per site: (r + h)(m + n), whatever k. Exact LoRA rank: k r + h. k = 1 is LoRA.
    Source: Jung et al. 2025; defaults as in HF PEFT. Trap: in the authors' repository r includes h, here as in PEFT not.

    >>> from deltaw.methods import GraLoRA
    >>> {k: v.shape for k, v in GraLoRA(r=4, k=2).params(10, 6).items()}
    {'A': (2, 4, 3), 'B': (2, 5, 4)}
    """

    r: int = 32
    alpha: float = 64.0
    k: int = 2
    hybrid_r: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / (self.r + self.hybrid_r)

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        divides("k", self.k, m=m, n=n, r=self.r)
        blocks = {"A": Param((self.k, self.r, n // self.k), down), "B": Param((self.k, m // self.k, self.r), up)}
        plain = {f"{w}_h": q for w, q in pair(m, n, self.hybrid_r).items()} if self.hybrid_r else {}
        return {**blocks, **plain}

    def weight(self, W: Op, p: Tensors) -> Op:
        D = chain(BlockDiag(p.B), Shuffle(self.k, self.r // self.k, p.A), BlockDiag(p.A))
        return W + self.scale * (D + chain(p.B_h, p.A_h) if self.hybrid_r else D)
