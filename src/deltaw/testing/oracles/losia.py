"""LoSiA: the closed form, one block of W exchanged (HF PEFT has no such method)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...methods.structure.losia import LoSiA

METHODS = (LoSiA(p=0.25, T=1000), LoSiA(p=0.5, p_in=1.0, T=1000))


def closed(method: LoSiA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    left, right = torch.eye(m, dtype=W.dtype)[:, p["I"]], torch.eye(n, dtype=W.dtype)[p["J"]]
    y = x @ (W + left @ p["v"] @ right).mT
    return y if b is None else y + b
