"""LoSiA: train a sub-matrix of W, and find a better one for each layer in turn."""

from __future__ import annotations

from typing import Any, Literal

from torch import int64

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Tensors, method
from ..pick import Pick
from ..sparse import with_past


@method(paper="arXiv:2507.04487", claims=("close to full fine-tuning; LoSiA-Pro 27 % faster than LoRA",))
class LoSiA(Method):
    """W'[I, J] = W[I, J] + v: the rows I (a,), a = int(p m), and columns J (c,), c = int(p n), random at first; v (a, c).

    Layer l of L looks for a better I x J in every steps(l) = {t: (t // T) mod L = l} (rule `localise`); what it has learned
    before stays in the frozen entries (I0, v0), empty at first. Start: v = 0, the base's first output. p_in: another share
    for the columns (output head: p = 1/8, p_in = 1). Count: about p² m n.
    Source: Wang et al. 2025. A step costs what LoSiA-Pro's does: x[J] is kept, dW[I, J] = dy[I]ᵀ x[J] is all that is formed.
    Trap: after a move Adam's counter is old and its moments are new: the slow start over T steps is required.

    >>> from deltaw.methods import LoSiA
    >>> LoSiA(p=0.5).params(10, 6)["v"].shape
    (5, 3)
    """

    p: float = 0.125
    p_in: float | None = None
    T: int = 100
    importance: Literal["mixed", "first", "second"] = "mixed"

    def params(self, m: int, n: int) -> Declared:
        a, c = int(self.p * m), int((self.p if self.p_in is None else self.p_in) * n)
        if not (0 < a <= m and 0 < c <= n):
            raise ShapeError(f"p = {self.p}, p_in = {self.p_in} leave {a} rows and {c} columns of a {m} x {n} weight")

        def among(total: int) -> Any:
            return lambda start, shape: start.choose(shape[0], total)

        return {
            "v": Param((a, c)),
            "I": Param((a,), among(m), train=False, dtype=int64),
            "J": Param((c,), among(n), train=False, dtype=int64),
            "I0": Param((0,), train=False, dtype=int64, free=0),
            "v0": Param((0,), train=False, free=0),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        m, n = W.shape
        return with_past(W, chain(Pick(p.I, m, p.v).T, p.v, Pick(p.J, n, p.v)), p.I0, p.v0)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["localise"](self.T, self.importance),)
