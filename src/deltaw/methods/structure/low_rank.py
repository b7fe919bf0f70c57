"""Low rank: the weight itself is a product of two thin factors, trained from scratch."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method


@method(
    paper="arXiv:2505.22922",
    start="none: W is replaced by a random product of rank r",
    claims=(
        "with refactored weights and reset moments a lower perplexity at 1B than GaLore and Fira, with 25 % less memory",
    ),
)
class LowRank(Method):
    """W' = s B A, s = alpha / r: W itself is not used. A (r, n) and B (m, r) trained, both ~ U(±1/sqrt fan-in).

    Count: r (m + n) instead of m n. Rank of W' <= r; W' - W is of no low rank. For training from scratch: attach it to a
    freshly initialised model with `train_modules` for embeddings, head and norms; `merge()` gives the dense weights. With
    the rule "lowrank_refactor" it is the method of the source, without it the plain baseline.
    Source: Glentis et al. 2025 and its code (r = 128, alpha = 32). Trap: the outputs start smaller than a dense layer's by
    a factor of about s sqrt(r / 3), and the frozen W stays in memory until the result is merged.

    >>> from deltaw.methods import LowRank
    >>> LowRank(r=2).params(10, 6)["B"].shape
    (10, 2)
    """

    r: int = 128
    alpha: float = 32.0

    scale = property(lambda self: self.alpha / self.r)

    def params(self, m: int, n: int) -> Declared:
        return {"A": Param((self.r, n), kaiming), "B": Param((m, self.r), kaiming)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return self.scale * chain(p.B, p.A)
