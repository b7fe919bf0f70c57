"""LoRA-GA: start along the singular directions of the gradient, so that the first steps follow full fine-tuning."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Start, Tensors
from ..leading import leading
from . import init, sketch, two_factors


@init(paper="arXiv:2407.05000", shifts=True, needs=("gradient",))
class LoRAGA:
    """G = U S Vᵀ cut at 2 r (G: the mean gradient of W); A = f V_aᵀ, B = f U_b; the base gives up s B A (see pissa).

    direction: (a, b) = "ArB2r" (first r, next r), "A2rBr" the other way round, "ArBr" (1, 3, ..; 0, 2, ..) or "random" (two
    disjoint r-subsets). scale: f = "stable" m^(1/4) / sqrt(gamma), "gd" 1 / s, "unit" 1, "weightS" the mean over the top r of
    sqrt(sigma_i(W) / s). Step 0 is W; export is a LoRA of rank 2 r. A and B keep G's column and row space: r <= min(m, n) / 2.
    Source: Wang, Yu, Li 2024 and its code; the SVD is a seeded subspace iteration on 4 r columns.
    Trap: mode="peft" is HF PEFT's other formula: B = U_b S_b, f on B alone ("gd" on both), "weightS" f = sigma_1(W) / S_b1,
    "random" the same subset for both; its B is tiny. A sum in the place of the mean changes nothing but that mode.
    """

    direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = "ArB2r"
    scale: Literal["stable", "gd", "unit", "weightS"] = "stable"
    gamma: float = 16.0
    mode: Literal["official", "peft"] = "official"

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op:
        B, A, s = two_factors(start, p)
        r, peft = A.shape[0], self.mode == "peft"
        if 2 * r > (room := min(start.W.shape)):
            raise ShapeError(f"{start.name}: {2 * r} directions are needed; a gradient of {start.W.shape} has {room}")
        U, S, V = leading(stats["gradient"].to(A), 2 * r, sketch(start))
        a, b = self.pairs(start, r)
        if self.scale == "weightS":
            f = float(start.svd(1)[1][0] / S[b[0]] if peft else (start.svd(r)[1] / s).sqrt().mean())
        else:
            f = {"stable": B.shape[0] ** 0.25 / self.gamma**0.5, "gd": 1 / s, "unit": 1.0}[self.scale]
        A.copy_(V[a] if peft and self.scale != "gd" else V[a] * f)
        B.copy_(U[:, b] * S[b] * f if peft else U[:, b] * f)
        return chain(-s * B, A.clone())

    def pairs(self, start: Start, r: int) -> tuple[Tensor, Tensor]:
        """Which triplets A and B take."""
        i = torch.arange(2 * r)
        if self.direction == "ArBr":
            return i[1::2], i[0::2]
        if self.direction == "random":
            one = start.at("lora_ga.random", None).choose(r, 2 * r)
            return one, one if self.mode == "peft" else i[~torch.isin(i, one)]
        return (i[:r], i[r:]) if self.direction == "ArB2r" else (i[r:], i[:r])
