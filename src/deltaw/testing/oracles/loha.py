"""LoHa: the formula, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.loha import LoHa

METHOD = LoHa(r=2, alpha=3.0)
WORDS = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}


def closed(method: LoHa, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    change = (p["B1"] @ p["A1"]) * (p["B2"] @ p["A2"])
    return F.linear(x, W + method.alpha / method.r * change, b)


def peft(method: LoHa) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoHaConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {ours: getattr(layer, word)["default"] for ours, word in WORDS.items()}
        for name, tensor in theirs.items():
            tensor.data.copy_(p[name])
        return {name: lambda t=tensor: t.grad for name, tensor in theirs.items()}

    return LoHaConfig(r=method.r, alpha=method.alpha, target_modules=["lin"]), put
