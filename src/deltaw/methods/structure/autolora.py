"""AutoLoRA's search space: a LoRA whose terms have shares that are learned on other data."""

from __future__ import annotations

from torch import softmax

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, ones
from ..factors import positive


@method(paper="arXiv:2403.09113", claims=("better than a uniform rank of the same sum",))
class AutoLoRA(Method):
    """y = W x + b + s B diag(softmax(c)) A x, s = alpha / r. B (m, r), A (r, n), c (r,) trained; c is the paper's alpha.

    Start: A ~ U(±1/sqrt n), B = 0, c = 1: the base's first output, and shares of 1 / r. deltaw.search_ranks(..., "autolora") trains B and A
    on one part of the data and c on the other, and gives the ranks for a plain LoRA; trained like any method, c learns with the rest.
    Count: r (m + n + 1). Exact LoRA rank: r. Source: Zhang et al. 2024 and its code. Trap: the softmax makes s r times smaller than the
    final LoRA's. Not the AutoLoRA that retrieves adapters.

    >>> from deltaw.methods import AutoLoRA
    >>> {k: p.shape for k, p in AutoLoRA(r=4).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'c': (4,)}
    """

    r: int = 8
    alpha: float = 16.0

    slots = {"B": 1, "A": 0}

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "c": Param((self.r,), ones)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, softmax(p.c, 0), p.A)
