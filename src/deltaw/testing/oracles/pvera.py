"""PVeRA in evaluation: the mean, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.pvera import PVeRA

METHOD = PVeRA(r=5)


def closed(method: PVeRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    mu = (p["d"] * F.linear(x, p["A"]))[..., : method.r]
    return F.linear(x, W, b) + p["b"] * torch.einsum("...r,mr->...m", mu, p["B"])


def peft(method: PVeRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import PveraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        b, d = layer.pvera_lambda_b["default"], layer.pvera_lambda_d["default"]
        for theirs, name in ((layer.pvera_A["default"], "A"), (layer.pvera_B["default"], "B"), (b, "b"), (d, "d")):
            theirs.data.copy_(p[name])
        return {"b": lambda: b.grad, "d": lambda: d.grad}

    return PveraConfig(r=method.r, d_initial=method.d0, target_modules=["lin"]), put
