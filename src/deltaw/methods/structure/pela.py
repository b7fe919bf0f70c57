"""PELA: a weight replaced by its two truncated SVD factors."""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError, SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, method


@method(
    paper="arXiv:2310.10700",
    start="none: W is replaced by its best approximation of rank r",
    claims=("a third to two thirds fewer parameters for about 0.6 points",),
)
class PELA(Method):
    """W' = R L, y = R (L x) + b: W itself is not used. R (m, r) = U_r sqrt(S_r), L (r, n) = sqrt(S_r) V_rᵀ, both trained.

    r = floor(m n / (c (m + n))), so that the layer shrinks by c; the first error is sum_{i > r} S_i². Count: r (m + n),
    the cost of a forward likewise. Not a change of low rank: W' is low-rank, W' - W is not.
    Source: Guo et al. 2024 and its code. This is the structure only: its intermediate pre-training (features and
    logits of the teacher, here the model with the adapter disabled, and a penalty on the largest entry of R L - W) is
    deltaw.distil. Small outputs (< 10 in the code) and norms are left out by choosing targets.
    Trap: the base stays in memory (it is the teacher); what is saved of a layer is R and L.

    >>> from deltaw.methods import PELA
    >>> PELA(c=2.0).params(96, 48)["R"].shape
    (96, 16)
    """

    c: float = 2.0

    def params(self, m: int, n: int) -> Declared:
        if self.c <= 0:
            raise SpecError(f"c is the factor by which a layer shrinks, above 0; found {self.c}")
        r = min(int(m * n / (self.c * (m + n))), m, n)
        if r < 1:
            raise ShapeError(f"a {m} x {n} weight shrunk by c = {self.c} keeps no direction; leave it out or lower c")

        def up(start: Start, _: tuple[int, ...]) -> Tensor:
            U, S, _V = start.svd(r)
            return U * S.sqrt()

        def down(start: Start, _: tuple[int, ...]) -> Tensor:
            _U, S, V = start.svd(r)
            return S.sqrt()[:, None] * V

        return {"R": Param((m, r), up), "L": Param((r, n), down)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return chain(p.R, p.L)
