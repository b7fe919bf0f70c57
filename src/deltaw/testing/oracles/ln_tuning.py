"""LN tuning: a layer norm by hand, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.ln_tuning import LNTuning

METHOD = LNTuning()


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    y = centred / (centred.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt() * p["weight"]
    return y + p["bias"] if "bias" in p else y


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import LNTuningConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {k: v for k, v in layer.ln_tuning_layers["default"].named_parameters() if k in p}
        with torch.no_grad():
            for name, tensor in theirs.items():
                tensor.copy_(p[name])
        return {name: lambda t=tensor: t.grad for name, tensor in theirs.items()}  # type: ignore[misc]

    return LNTuningConfig(target_modules=["lin"]), put
