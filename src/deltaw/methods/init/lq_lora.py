"""LQ-LoRA: start from the low-rank part of a decomposition that weighs errors by the Fisher information."""

from __future__ import annotations

from torch import Tensor

from ...spec import Start, Tensors
from .. import lq
from . import init, two_factors


@init(
    paper="arXiv:2311.12023",
    needs=("weight", "original", "fisher"),
    start="none: step 0 is nearer to the original weights than the quantised base, where the loss feels it",
)
class LQLoRA:
    """W0 - Q ~ L1 L2 of rank r, nearest in |diag(d_row) . diag(d_col)|_F, d the roots of the row and column means of the Fisher diagonal
    F = sum of G * G over single examples, of the original model; B = L1 / sqrt(s), A = L2 / sqrt(s). Q is the base as the model has it, W0 the original.

    Whole method: quantise `lq.decompose(W0, r, codec, F)`'s W0 - L1 L2 in the place of W0 (deltaw.quantise(..., instead=)), with a codec for
    each weight from `lq.allot`; then Q and this start are a pair. Without Fisher information the init loftq is the same.
    Source: Guo et al. 2024 and its code. Trap: "fisher" wants batches of one example each; the order is factor first, quantise second.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, s = two_factors(start, p)
        start.room(A.shape[0])
        L1, L2 = lq.low_rank(stats["original"].to(A) - start.dense().to(A), A.shape[0], stats["fisher"].to(A.device))
        B.copy_(L1 / s**0.5)
        A.copy_(L2 / s**0.5)
