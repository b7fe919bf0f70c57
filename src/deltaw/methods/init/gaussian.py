"""Gaussian start: A ~ N(0, 1/r²), B = 0."""

from __future__ import annotations

from torch import Tensor

from ...spec import Start, Tensors
from . import init, two_factors


@init(paper="(HF PEFT, init_lora_weights='gaussian')")
class Gaussian:
    """A ~ N(0, 1 / r²) entrywise (standard deviation 1 / r, not 1 / sqrt r), B = 0; identity at step 0.

    On an embedding, where B is the random factor, the two change roles.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, _ = two_factors(start, p)
        drawn, zero, name = (B, A, "B") if start.kind == "embedding" else (A, B, "A")
        drawn.copy_(start.at(name, None).normal(tuple(drawn.shape), 1.0 / A.shape[0]))
        zero.zero_()
