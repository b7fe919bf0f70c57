"""Super-Tuning: the entries of largest magnitude are trained; Supra: with a low-rank part beside them."""

from __future__ import annotations

from torch import Tensor, int64

from ...errors import ShapeError, SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, method
from ..sparse import Sparse, top


@method(paper="arXiv:2607.09287", claims=("entries of low score can be a good choice too; best with a LoRA beside",))
class Supertuning(Method):
    """W' = W + scatter(I, v) + s B A: v (K,) trained, I (K,) the K = int((1 - sparsity) m n) largest (smallest) |W|.

    Super: r = 0, no B and A. Supra: B (m, r), A (r, n), s = alpha / r, alpha = 2 r by default. Start: v = 0, B = 0, the base's
    first output. Count: K + r (m + n). No plain LoRA equals it.
    Source: HF PEFT 0.21.2, formula and defaults. In Ilin et al. 2026 the score is |W| times the norm of the inputs, and |W|
    alone a baseline. Trap: among equal magnitudes PEFT takes any, here the first in flat order; a file's positions count.

    >>> from deltaw.methods import Supertuning
    >>> Supertuning(sparsity=0.9).params(10, 6)["v"].shape
    (5,)
    """

    sparsity: float = 0.99
    select_top: bool = True
    r: int = 0
    alpha: float | None = None

    @property
    def scale(self) -> float:
        return (2.0 * self.r if self.alpha is None else self.alpha) / max(self.r, 1)

    def params(self, m: int, n: int) -> Declared:
        if not 0.0 <= self.sparsity < 1.0 or self.r < 0:
            raise SpecError(f"sparsity must be in [0, 1) and r at least 0; found {self.sparsity} and {self.r}")
        if (K := int(m * n * (1 - self.sparsity))) < 1:
            raise ShapeError(f"sparsity = {self.sparsity} leaves none of the {m * n} entries of a {m} x {n} weight: lower it")

        def where(start: Start, _: tuple[int, ...]) -> Tensor:
            return top(start.dense().abs(), K, self.select_top)

        sparse: Declared = {"v": Param((K,)), "I": Param((K,), where, train=False, dtype=int64)}
        return sparse | ({"A": Param((self.r, n), kaiming), "B": Param((m, self.r))} if self.r else {})

    def weight(self, W: Op, p: Tensors) -> Op:
        at = W + Sparse(p.I, p.v, W.shape)
        return at + self.scale * chain(p.B, p.A) if self.r else at
