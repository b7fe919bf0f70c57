"""LT-SFT: sparse fine-tuning of the lottery ticket that dense training would draw."""

from __future__ import annotations

from typing import Any

from torch import Tensor, arange, int64

from ...errors import SpecError
from ...ops import Op
from ...spec import RULES, Declared, Method, Param, Start, Tensors, method
from ..sparse import Sparse


@method(paper="arXiv:2110.07560", claims=("beats MAD-X adapters in zero-shot cross-lingual transfer; adapters add up",))
class LTSFT(Method):
    """W' = W + scatter(I, v): at first every entry is in I, so v (m n,) is a dense change; then K entries are left.

    After `steps` optimiser steps (rule `lottery`) the share `keep` of all entries of all sites whose v is largest stays in
    I, v goes back to 0, and training starts again with an optimiser that has seen nothing. l1: its coefficient over the
    number of entries, times the sum of |v|, is added to the loss once a step. The first output is the base's.
    Source: Ansell et al. 2022, one iteration. Traps: adapters of this kind are composed by adding them; the first phase
    needs 16 bytes an entry besides Adam's; the learning-rate schedule goes on, so plan for its rest in phase 2.

    >>> from deltaw.methods import LTSFT
    >>> LTSFT().params(10, 6)["v"].shape
    (60,)
    """

    keep: float = 0.01
    steps: int = 1000
    l1: float = 0.0

    def params(self, m: int, n: int) -> Declared:
        if not 0.0 < self.keep <= 1.0 or self.steps < 1:
            raise SpecError(f"keep must be in (0, 1] and steps at least 1; found {self.keep} and {self.steps}")

        def everywhere(start: Start, shape: tuple[int, ...]) -> Tensor:
            return arange(m * n)

        I = Param((m * n,), everywhere, train=False, dtype=int64, free=0)  # noqa: E741
        return {"v": Param((m * n,), free=0), "I": I}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + Sparse(p.I, p.v, W.shape)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["lottery"](self.keep, self.steps, self.l1),)
