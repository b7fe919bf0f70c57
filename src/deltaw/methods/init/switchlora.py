"""SwitchLoRA's start: both factors random, so that switched vectors and their partners move alike."""

from __future__ import annotations

from torch import Tensor

from ...ops import Op, chain
from ...spec import Start, Tensors
from ..switching import bounds
from . import init, two_factors


@init(paper="arXiv:2406.06564", shifts=True)
class SwitchLoRA:
    """A ~ U(±a), B ~ U(±b), a and b as in methods.switching.bounds; the base gives up s B A, so step 0 is W (a constant, see pissa).

    The law of the vectors that the rule `switchlora` switches in. Source: Zhou et al. 2024, their code.
    Trap: their law is for alpha = 1 and does not look at alpha; here s B A has the size that it has there for every alpha.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op:
        B, A, s = two_factors(start, p)
        a, b = bounds(len(B), A.shape[1], len(A), s)
        A.copy_(start.at("A", None).uniform(tuple(A.shape), a))
        B.copy_(start.at("B", None).uniform(tuple(B.shape), b))
        return chain(-s * B, A.clone())
