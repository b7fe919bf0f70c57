"""MiSS: entry by entry, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.miss import MiSS

METHODS = (MiSS(r=4), MiSS(r=5), MiSS(r=6, mini_r=8))
METHOD = METHODS[0]


def closed(method: MiSS, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    (m, n), D = W.shape, p["D"]
    change = torch.stack([torch.stack([D[j % len(D), o % D.shape[1]] for j in range(n)]) for o in range(m)])
    return F.linear(x, W + change, b)


def peft(method: MiSS) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import MissConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        D = layer.miss_block["default"]
        D.data.copy_(p["D"])
        return {"D": lambda: D.grad}

    kind = {"init_weights": "mini", "mini_r": method.mini_r} if method.mini_r else {}
    return MissConfig(r=method.r, target_modules=["lin"], **kind), put
