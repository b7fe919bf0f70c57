"""LoKr: the formula, and HF PEFT; with the large factor low-rank, with both low-rank, with both full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lokr import LoKr

METHODS = (
    LoKr(r=1, alpha=2.0),
    LoKr(r=1, alpha=2.0, decompose_both=True),
    LoKr(r=8, alpha=4.0),
    LoKr(r=2, alpha=4.0, decompose_factor=2),
)
METHOD = METHODS[0]
WORDS = {"C": "w1", "C_b": "w1_a", "C_a": "w1_b", "D": "w2", "D_b": "w2_a", "D_a": "w2_b"}


def closed(method: LoKr, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    C, D = (p[k] if k in p else p[f"{k}_b"] @ p[f"{k}_a"] for k in ("C", "D"))
    return F.linear(x, W + method.alpha / method.r * torch.kron(C.contiguous(), D.contiguous()), b)


def peft(method: LoKr) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoKrConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {name: getattr(layer, f"lokr_{WORDS[name]}")["default"] for name in p}
        for name, tensor in theirs.items():
            tensor.data.copy_(p[name])
        return {name: lambda t=tensor: t.grad for name, tensor in theirs.items()}

    both, factor = method.decompose_both, method.decompose_factor
    config = LoKrConfig(
        r=method.r, alpha=method.alpha, decompose_both=both, decompose_factor=factor, target_modules=["lin"]
    )
    return config, put
