"""DEFT: Gram-Schmidt or relu written out, and HF PEFT's DEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.deft import DEFT

METHODS = (DEFT(r=4), DEFT(r=3, alpha=6.0, decomposition="qr"))
METHOD = METHODS[0]


def bases(method: Any, P: Tensor) -> tuple[Tensor, Tensor]:
    if method.decomposition == "relu":
        return P, P.clamp(min=0)
    signs = torch.linalg.qr(P.detach()).R.diagonal().sign()  # which of the two directions is the routine's choice
    found: list[Tensor] = []
    for u, sign in zip(P.mT, signs):
        for q in found:
            u = u - (q @ u) * q
        found.append(sign * u / u.square().sum().sqrt())
    Q = torch.stack(found, 1)
    return Q, Q


def closed(method: DEFT, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    Q, K = bases(method, p["P"])
    s = method.alpha / method.r if method.alpha else 1.0
    return F.linear(x, W - Q @ K.mT @ W + s * Q @ p["R"], b)


def peft(method: DEFT) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import DeftConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        P, R = layer.deft_P["default"], layer.deft_R["default"]
        P.data.copy_(p["P"])
        R.data.copy_(p["R"])
        return {"P": lambda: P.grad, "R": lambda: R.grad}

    config = DeftConfig(
        r=method.r, alpha=method.alpha or None, decomposition_method=method.decomposition, target_modules=["lin"]
    )
    return config, put
