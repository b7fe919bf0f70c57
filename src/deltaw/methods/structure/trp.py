"""TRP: a dense weight whose training keeps it near low rank."""

from __future__ import annotations

from typing import Any

from ...ops import Dense, Op
from ...spec import RULES, Declared, Method, Param, Tensors, method


@method(
    paper="arXiv:2004.14566", start="rounding", claims=("low-rank factors without fine-tuning after the decomposition",)
)
class TRP(Method):
    """W' = D, D (m, n) trained, started as W; the rule "trp" cuts D to the rank that keeps a share `energy` of its squares.

    Every `every` steps D <- U_k diag(S_k) V_k, and the next step's gradient gets penalty · U_k V_k, a subgradient of the
    nuclear norm. Kernels count as m x (c kh kw) ("NC" in the source), with kernel = (kh, kw) as
    (c kh) x (m kw) ("VH"). Count: m n. The first output is the base's.
    Source: Xu et al. 2020 and its code (energy 0.9, penalty 3e-4, every 5 of the script; SGD with momentum 0.9).
    Trap: what training has put into small singular values since the last cut is lost at the next one, so too small an
    `energy` stops the learning; the result is dense, of low rank only just after a cut.

    >>> from deltaw.methods import TRP
    >>> TRP().params(10, 6)["D"].shape
    (10, 6)
    """

    energy: float = 0.9
    penalty: float = 3e-4
    every: int = 5
    kernel: tuple[int, ...] = ()

    def params(self, m: int, n: int) -> Declared:
        return {"D": Param((m, n), lambda start, _: start.dense())}

    def weight(self, W: Op, p: Tensors) -> Op:
        return Dense(p.D)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["trp"](self.energy, self.penalty, self.every, kernel=self.kernel),)
