"""HiRA: the formula, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.hira import HiRA

METHOD = HiRA(r=3)


def closed(method: HiRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W * (1 + p["B"] @ p["A"]), b)


def peft(method: HiRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import HiraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.hira_A["default"], layer.hira_B["default"]
        A.data.copy_(p["A"])
        B.data.copy_(p["B"])
        return {"A": lambda: A.grad, "B": lambda: B.grad}

    return HiraConfig(r=method.r, target_modules=["lin"]), put
