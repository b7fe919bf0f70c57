"""GraLoRA: the formula block by block, and HF PEFT; with and without the plain pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.gralora import GraLoRA

METHODS = (GraLoRA(r=4, alpha=6.0, k=2), GraLoRA(r=4, alpha=6.0, k=4, hybrid_r=2))
METHOD = METHODS[0]


def closed(method: GraLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Block (j, i) of the change is (chunk i of B_j's columns) times (chunk j of A_i's rows)."""
    k, q = method.k, method.r // method.k
    chunk = [slice(i * q, (i + 1) * q) for i in range(k)]
    rows = [torch.cat([p["B"][j][:, chunk[i]] @ p["A"][i][chunk[j]] for i in range(k)], 1) for j in range(k)]
    change = torch.cat(rows, 0)
    if method.hybrid_r:
        change = change + p["B_h"] @ p["A_h"]
    return F.linear(x, W + method.alpha / (method.r + method.hybrid_r) * change, b)


def peft(method: GraLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import GraloraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {"A": (layer.gralora_A["default"], True), "B": (layer.gralora_B["default"], True)}
        if method.hybrid_r:
            theirs["A_h"] = (layer.gralora_A_general["default"].weight, False)
            theirs["B_h"] = (layer.gralora_B_general["default"].weight, False)
        for name, (tensor, turned) in theirs.items():
            tensor.data.copy_(p[name].mT if turned else p[name])
        return {n: lambda t=t, turned=turned: t.grad.mT if turned else t.grad for n, (t, turned) in theirs.items()}

    config = GraloraConfig(
        r=method.r, alpha=method.alpha, gralora_k=method.k, hybrid_r=method.hybrid_r, target_modules=["lin"]
    )
    return config, put
