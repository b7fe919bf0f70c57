"""VeRA: the formula, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.vera import VeRA

METHOD = VeRA(r=5)


def closed(method: VeRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W + torch.diag(p["b"]) @ p["B"] @ torch.diag(p["d"]) @ p["A"], b)


def peft(method: VeRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import VeraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        b, d = layer.vera_lambda_b["default"], layer.vera_lambda_d["default"]
        shared = ((layer.vera_A["default"], "A"), (layer.vera_B["default"], "B"))
        for theirs, name in (*shared, (b, "b"), (d, "d")):
            theirs.data.copy_(p[name])
        return {"b": lambda: b.grad, "d": lambda: d.grad}

    return VeraConfig(r=method.r, d_initial=method.d0, target_modules=["lin"]), put
