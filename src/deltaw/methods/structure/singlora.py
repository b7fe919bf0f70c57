"""SingLoRA: one matrix times its own transpose."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, method
from ..factors import positive
from ..rules.ramp import Ramp


def wide(start: Start, shape: tuple[int, ...]) -> Tensor:
    """U(±1/sqrt N), N the length of the columns: entries of the size that the paper's analysis asks for."""
    return start.uniform(shape, shape[0] ** -0.5)


@method(paper="arXiv:2507.05566", claims=("half of LoRA's parameters; two factors of different scale cannot arise",))
class SingLoRA(Method):
    """y = W x + b + s u A_m A_nᵀ x, s = alpha / r: A (N, r) trained, N = max(m, n), A_k its first k rows.

    u = min(t / T, 1), t the optimiser steps made, is a stored number that a rule moves. Start: u = 0, the base's first
    output (A, which is U(±1/sqrt N), gets its first gradient at t = 1). Trained per site: r max(m, n); r (m + n) operations
    a token. Exact LoRA rank: r. Source: Bensaïd et al. 2025; T is about 1 % of the steps there, the start's size our reading.
    Trap: where m = n the change is symmetric with eigenvalues of one sign: it cannot shrink any direction. Public code
    counts forward calls instead of steps, and forgets a transpose where m > n.

    >>> from deltaw.methods import SingLoRA
    >>> {k: v.shape for k, v in SingLoRA(r=4).params(10, 6).items()}
    {'A': (10, 4), 'u': ()}
    """

    r: int = 8
    alpha: float = 8.0
    T: int = 100

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, T=self.T)
        return {"A": Param((max(m, n), self.r), wide), "u": Param((), train=False, ruled=True)}

    def rules(self) -> tuple[Any, ...]:
        return (Ramp(T=self.T),)

    def weight(self, W: Op, p: Tensors) -> Op:
        m, n = W.shape
        return W + chain(self.scale * p.u * p.A[:m], p.A[:n].mT)
