"""PaRa: the projector by its normal equations, and HF PEFT's DEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.para import PaRa

METHODS = (PaRa(r=4), PaRa(r=3, decomposition="relu"))
METHOD = METHODS[0]


def closed(method: PaRa, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The projector on P's columns is P (Pᵀ P)⁻¹ Pᵀ."""
    P = p["P"]
    out = P @ torch.linalg.inv(P.mT @ P) @ P.mT if method.decomposition == "qr" else P @ P.clamp(min=0).mT
    return F.linear(x, W - out @ W, b)


def peft(method: PaRa) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import DeftConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        P = layer.deft_P["default"]
        P.data.copy_(p["P"])
        return {"P": lambda: P.grad}

    return DeftConfig(r=method.r, para=True, decomposition_method=method.decomposition, target_modules=["lin"]), put
