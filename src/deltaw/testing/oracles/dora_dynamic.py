"""DoRADynamic: term by term."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.dora_dynamic import DoRADynamic

METHOD = DoRADynamic(r=3, alpha=6.0, target_r=2)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for k in range(len(p["c"])):
        y = y + method.alpha / method.r * p["c"][k] * (x @ p["A"][k])[..., None] * p["B"][:, k]
    return y
