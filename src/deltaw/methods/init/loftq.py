"""LoftQ: start from what the quantisation of the base has lost."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...ops import random as rng
from ...spec import Start, Tensors
from ..leading import leading
from . import init, sketch, two_factors


@init(
    paper="arXiv:2310.08659",
    needs=("weight", "original"),
    start="none: step 0 is nearer to the original weights than the quantised base",
)
class LoftQ:
    """W0 - Q ~ U S Vᵀ cut at r, Q the base as the model has it and W0 the original: B = U sqrt(S / s), A = sqrt(S / s) Vᵀ.

    The base is never changed here, so this is the last half of LoftQ's loop. With a base that was quantised as usual it is
    T = 1. For T > 1 quantise `alternated(W0, r, T, rounded)`, for every layer, in the place of W0: then Q and this start
    are the pair after T rounds. Source: Li et al. 2023; as in HF PEFT, but exact for every s (PEFT's is for s = 1).
    Trap: the statistic "original" is no measurement: deltaw.probe(model, (), plan, original=the unquantised model or its state).
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, s = two_factors(start, p)
        r = A.shape[0]
        start.room(r)
        U, S, V = leading(stats["original"].to(A) - start.dense().to(A), r, sketch(start))
        root = (S / s).sqrt()
        B.copy_(U * root)
        A.copy_(root[:, None] * V)


def alternated(W: Tensor, r: int, T: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """What is to be quantised in the place of W: W - L R after T - 1 rounds of {Q = rounded(W - L R); L R = rank r of W - Q}.

    rounded(W): quantise and dequantise, as the base will be (deltaw.methods.nf4, or bitsandbytes').
    """
    left = W
    for _ in range(T - 1):
        U, S, V = leading(W - rounded(left), r, lambda shape: rng.normal(shape, rng.key("loftq"), 1.0))
        left = W - (U * S) @ V
    return left
