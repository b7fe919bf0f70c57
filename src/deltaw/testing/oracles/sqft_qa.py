"""SQFT on a grid: the whole number of every entry by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.sqft_qa import SQFTQA

METHOD = SQFTQA(r=3, alpha=6.0, group=8)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    u, rows = W + method.alpha / method.r * (p["B"] @ p["A"]) * p["M"], []
    for i in range(W.shape[0]):
        row = []
        for j in range(W.shape[1]):
            s, z = p["s_q"][i, j // method.group], p["z"][i, j // method.group]
            free = (u[i, j] / s + z).clamp(0, 2**method.bits - 1)  # gradients go straight through the rounding, and end at the ends
            whole = min(max(round(float((u[i, j] / s + z).detach())), 0), 2**method.bits - 1)
            row.append(s * (free + (whole - free).detach() - z))
        rows.append(torch.stack(row))
    new = torch.stack(rows)
    return x @ new.mT if b is None else x @ new.mT + b
