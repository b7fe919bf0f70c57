"""CoDyRA: term by term."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.codyra import CoDyRA

METHOD = CoDyRA(r=3)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = F.linear(x, W, b)
    for k in range(len(p["c"])):
        y = y + 1.0 * p["c"][k] * (x @ p["A"][k])[..., None] * p["B"][:, k]
    return y
