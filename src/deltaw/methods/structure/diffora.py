"""DiffoRA's search space: a LoRA with one gate for the whole site, learned on other data."""

from __future__ import annotations

from torch import sigmoid

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, zeros
from ..factors import positive


@method(paper="arXiv:2502.08905", claims=("choosing modules beats adjusting ranks at equal parameters",))
class DiffoRA(Method):
    """y = W x + b + 2 sigmoid(c) s B A x, s = alpha / r. B (m, r), A (r, n), c (1,) trained; c is the paper's omega of this module.

    A reading: the abstract tells of a relaxed 0/1 matrix of layers and modules, learned in two levels as in DARTS, of which the best of each
    layer are kept; the sigmoid (a softmax would tie the modules of a layer), the keep ratio and that nothing is shared are ours.
    deltaw.search_ranks(..., "diffora") does that. Start: A ~ U(±1/sqrt n), B = 0, c = 0 (a gate of 1): the base's first output. Count:
    r (m + n) + 1. Exact LoRA rank: r. Source: Jiang et al. 2025. Trap: a gate near 0 leaves A and B without a gradient.

    >>> from deltaw.methods import DiffoRA
    >>> DiffoRA(r=4).params(10, 8)["c"].shape
    (1,)
    """

    r: int = 8
    alpha: float = 16.0

    slots = {"B": 1, "A": 0}

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"B": Param((m, self.r)), "A": Param((self.r, n), kaiming), "c": Param((1,), zeros)}

    def weight(self, W: Op, p: Tensors) -> Op:
        gate = 2 * sigmoid(p.c)
        return W + chain(p.B, (gate * self.alpha / self.r).expand(self.r), p.A)
