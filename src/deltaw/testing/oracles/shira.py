"""SHiRA: the formula, and HF PEFT given the same positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.shira import SHiRA

METHODS = (SHiRA(r=2), SHiRA(r=2, mask="wm"), SHiRA(r=3, mask="struct", first=5))
METHOD = METHODS[0]


def closed(method: SHiRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = torch.zeros_like(W).reshape(-1).scatter(0, p["I"], p["v"]).reshape(W.shape)
    return F.linear(x, W + change, b)


def peft(method: SHiRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import ShiraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        v, n = layer.shira_weight["default"], layer.in_features
        v.data.copy_(p["v"])
        layer.shira_indices["default"] = torch.stack([p["I"] // n, p["I"] % n]).to(torch.int)
        return {"v": lambda: v.grad}

    return ShiraConfig(r=method.r, target_modules=["lin"]), put
