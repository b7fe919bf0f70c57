"""IncreLoRA: term by term."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.increlora import IncreLoRA

METHOD = IncreLoRA(r=2, target_r=4)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for c, B, A in ((p["c"], p["B"], p["A"]), (p["c_r"], p["B_r"], p["A_r"])):
        for k in range(len(c)):
            y = y + method.alpha / (p["R"] + 1e-5) * c[k] * (x @ A[k])[..., None] * B[:, k]
    return y
