"""OLoRA: start from the QR decomposition of W."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Start, Tensors
from . import init, two_factors


@init(paper="arXiv:2406.01775", shifts=True, needs=("weight",))
class OLoRA:
    """B = Q[:, :r], A = R[:r] from W = Q R; the base gives up s B A, so step 0 is W (kept as a constant, see pissa).

    Source: Büyükakyüz 2024; as in HF PEFT. Trap: B is orthonormal, A carries all of W's size.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op:
        B, A, s = two_factors(start, p)
        start.room(A.shape[0])
        Q, R = torch.linalg.qr(start.dense())
        B.copy_(Q[:, : A.shape[0]])
        A.copy_(R[: A.shape[0]])
        return chain(-s * B, A.clone())
