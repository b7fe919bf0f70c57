"""QWHA: the recursive Hadamard matrix, dense (PEFT 0.21 does not have it)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.qwha import QWHA

METHOD = QWHA(r=4, s=8.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    H = torch.ones(1, 1, dtype=W.dtype)
    while len(H) < n:
        H = torch.cat((torch.cat((H, H), 1), torch.cat((H, -H), 1)))
    S = torch.zeros_like(W).reshape(-1).scatter(0, p["I"], p["c"]).reshape(m, n)
    return F.linear(x, W + method.s / m**0.5 * S @ H.mT / n, b)
