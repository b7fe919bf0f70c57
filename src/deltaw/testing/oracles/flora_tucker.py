"""FLoRA: the Tucker sum of a linear layer, entry by entry (PEFT does not have it; convolutions are tested apart)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.flora_tucker import FLoRATucker

METHODS = (FLoRATucker(r_in=3, r_out=5, scale=2.0), FLoRATucker(r_in=4, r_out=2, scale=1.0))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = torch.einsum("ab,ia,ob->oi", p["G"], p["U_in"], p["U_out"])
    y = x @ (W + method.scale * change).mT
    return y if b is None else y + b
