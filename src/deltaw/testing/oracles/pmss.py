"""PMSS: the closed form, C and R read from W at the stored indices (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.pmss import PMSS

METHODS = (PMSS(r=4, scale=0.5), PMSS(r=16))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    rows, columns = torch.eye(W.shape[0], dtype=W.dtype)[p["I"]], torch.eye(W.shape[1], dtype=W.dtype)[p["J"]]
    y = x @ W.mT + method.scale * (x @ (rows @ W).mT) @ p["M"].mT @ (W @ columns.mT).mT
    return y if b is None else y + b
