"""Orthogonal start: two non-zero factors whose product is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ...spec import Start, Tensors
from . import init, two_factors


@init(paper="(HF PEFT, init_lora_weights='orthogonal')")
class Orthogonal:
    """B A = 0 with both factors non-zero: Q (r, r) orthogonal, B = G_B Q_even / 10, A = Q_oddᵀ G_A / 10.

    Q_even and Q_odd are the rows of Q with even and odd number, G_A (r/2, n) and G_B (m, r/2) standard normal. Both
    factors get a gradient from the first step on. r must be even.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, _ = two_factors(start, p)
        r = A.shape[0]
        if r % 2:
            raise ShapeError(f"init 'orthogonal' needs an even rank; found r = {r} at {start.name}")
        Q, _ = torch.linalg.qr(start.at("orthogonal.Q", None).normal((r, r), 1.0))
        B.copy_(start.at("B", None).normal((B.shape[0], r // 2), 0.1) @ Q[0::2])
        A.copy_(Q[1::2].mT @ start.at("A", None).normal((r // 2, A.shape[1]), 0.1))
