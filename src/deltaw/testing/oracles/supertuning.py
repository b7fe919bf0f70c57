"""Super-Tuning: the closed form, and HF PEFT's layer, which has the positions flat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...methods.structure.supertuning import Supertuning

METHODS = (Supertuning(sparsity=0.8), Supertuning(sparsity=0.9, select_top=False, r=2, alpha=3.0))


def closed(method: Supertuning, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = torch.zeros_like(W).reshape(-1).scatter(0, p["I"], p["v"]).reshape(W.shape)
    if method.r:
        change = change + (method.alpha or 2 * method.r) / method.r * (p["B"] @ p["A"])
    return F.linear(x, W + change, b)


def peft(method: Supertuning) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import SupertuningConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {"v": layer.supertuning_values["default"]}
        assert set(layer.supertuning_indices["default"].tolist()) == set(p["I"].tolist())  # the choice is the same
        layer.supertuning_indices["default"] = p["I"].to(torch.int32)
        if method.r:
            theirs |= {"A": layer.supertuning_lora_A["default"].weight, "B": layer.supertuning_lora_B["default"].weight}
        for name, t in theirs.items():
            t.data.copy_(p[name])
        return {name: lambda t=t: t.grad for name, t in theirs.items()}  # type: ignore[misc]

    more = {"r": method.r, "lora_alpha": method.alpha} if method.r else {}
    return SupertuningConfig(
        sparsity=method.sparsity, select_top=method.select_top, target_modules=["lin"], **more
    ), put
