"""Bat: block by block, and HF PEFT's MiSS with init_weights="bat"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.bone_bat import BoneBat

METHODS = (BoneBat(r=4), BoneBat(r=8))
METHOD = METHODS[0]


def closed(method: BoneBat, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    r, one = method.r, torch.eye(method.r, dtype=W.dtype)
    rows = []
    for D, part in zip(p["D"], W.split(r)):
        rows.append(torch.cat([block + (block + one) @ D for block in part.split(r, 1)], 1))
    return F.linear(x, torch.cat(rows), b)


def peft(method: BoneBat) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import MissConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        D = layer.miss_block["default"]
        D.data.copy_(p["D"])
        return {"D": lambda: D.grad}

    return MissConfig(r=method.r, init_weights="bat", target_modules=["lin"]), put
