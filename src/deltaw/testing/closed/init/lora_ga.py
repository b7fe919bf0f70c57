"""LoRA-GA by hand: eigenvectors of G Gᵀ and GᵀG; signs are free, so both are compared pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.lora_ga import LoRAGA

from ..hand import triplets

INITS = [
    LoRAGA(), LoRAGA(direction="A2rBr", scale="gd"), LoRAGA(direction="ArBr", scale="unit"), LoRAGA(scale="weightS"),
    LoRAGA(mode="peft"), LoRAGA(mode="peft", direction="ArBr", scale="weightS"), LoRAGA(mode="peft", scale="gd", direction="A2rBr"),
]  # fmt: skip
PEFT = "mode 'peft' against LoraGAConfig, three directions and four scales"


def closed(init: LoRAGA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, Tensor]:
    m = W.shape[0]
    U, sigma, V = triplets(stats["gradient"])
    first, second = list(range(r)), list(range(r, 2 * r))
    a, b = {
        "ArB2r": (first, second), "A2rBr": (second, first), "ArBr": (list(range(1, 2 * r, 2)), list(range(0, 2 * r, 2))),
    }[init.direction]  # fmt: skip
    A, B, of_W = V[a], U[:, b], torch.linalg.svdvals(W)
    stable = m**0.25 / init.gamma**0.5
    if init.mode == "peft":
        B = B * sigma[b]
        B = B * {"stable": stable, "weightS": of_W[0] / sigma[b[0]], "gd": 1 / s, "unit": 1.0}[init.scale]
        A = A / s if init.scale == "gd" else A
    else:
        f = {"stable": stable, "weightS": float((of_W[:r] / s).sqrt().mean()), "gd": 1 / s, "unit": 1.0}[init.scale]
        A, B = A * f, B * f
    return B, A, -s * B @ A
