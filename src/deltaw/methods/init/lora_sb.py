"""LoRA-SB: LoRA-XS between the singular directions of the first update of full fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ...spec import Start, Tensors, scale_of
from ..leading import leading
from . import init, sketch


@init(
    paper="arXiv:2411.19557",
    needs=("gradient",),
    fills=("A", "B"),
    start="none: the first step of AdamW has been made, cut at rank r",
)
class LoRASB:
    """For y = W x + s B R A x with R trained: -step sign(G) ~ U S Vᵀ cut at r; B = U, R = diag(S) / s, A = Vᵀ.

    step is what AdamW moves an entry by in its first step: the learning rate there, lr / (warm-up steps). W is not
    compensated: step 0 is W plus the best rank-r part of that update, whatever s is.
    Source: Ponkshe et al. 2024 and its code (which has s = 1 and rounds U, S, V to bfloat16; here they are kept).
    Trap: the sign is taken after the mean over all batches. A and B are orthonormal and frozen: s = 1 (alpha = r) makes
    R's gradient that of W in their coordinates, and any other s only changes its learning rate.
    """

    step: float = 5e-6

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        if not {"A", "B", "R"} <= set(p.names()) or p.R.shape != (p.B.shape[1], p.A.shape[0]):
            raise SpecError(
                f"this init fills B, R and A of W + s B R A (lora_xs); {start.method} at {start.name} has no such R"
            )
        r = p.R.shape[0]
        start.room(r)
        U, S, V = leading(-self.step * torch.sign(stats["gradient"].to(p.A)), r, sketch(start), power=10)
        p.B.copy_(U)
        p.A.copy_(V)
        p.R.copy_(torch.diag(S / scale_of(start.method)))
