"""Hydra: the two branches as activations, the second behind the bias (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.hydra import Hydra

METHODS = (Hydra(r_p=2, r_s=3, scale=0.7), Hydra(r_p=0, r_s=2), Hydra(r_p=2, r_s=0))


def closed(method: Hydra, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    z = F.linear(x, W, b)
    y = z
    if "A_p" in p:
        y = y + method.scale * (x @ p["A_p"].T @ p["B_p"].T)
    if "A_s" in p:
        y = y + method.scale * (z @ p["A_s"].T @ p["B_s"].T)
    return y
