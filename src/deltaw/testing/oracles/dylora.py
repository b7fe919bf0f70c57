"""DyLoRA: term by term."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.dylora import DyLoRA

METHODS = [DyLoRA(r=3, alpha=6.0, b=2, frozen=False), DyLoRA(r=1)]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    b = method.b or method.r
    for k in range(b):
        y = y + method.alpha / b * (x @ p["A"][k])[..., None] * p["B"][:, k]
    return y
