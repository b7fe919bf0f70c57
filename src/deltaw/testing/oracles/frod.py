"""FRoD: the closed form, and HF PEFT given our basis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.frod import FRoD

METHODS = (FRoD(rate=0.05), FRoD())
METHOD = METHODS[0]


def closed(method: FRoD, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The frozen parts are checked: V diagonalises the one-layer mean, U has unit columns, U diag(Lambda0) Vᵀ = W."""
    V, n = p["V"].to(W.dtype), W.shape[1]
    columns = torch.linalg.inv(V) @ W.mT
    torch.testing.assert_close(p["U"].to(W.dtype), columns.mT / columns.norm(dim=1), rtol=1e-5, atol=1e-5)
    S = torch.zeros(n, n, dtype=W.dtype)
    for value, place in zip(p["s"], p["I"].tolist(), strict=True):
        assert place // n != place % n
        S = S + value * torch.eye(n, dtype=W.dtype)[:, place // n, None] * torch.eye(n, dtype=W.dtype)[place % n]
    y = x @ (p["U"] @ (torch.diag(p["Lambda"]) + S) @ V.mT).mT
    return y if b is None else y + b


def peft(method: FRoD) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import FrodConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        L, s, n = layer.frod_lambda_l["default"], layer.frod_lambda_s_values["default"], layer.in_features
        layer.frod_V["default"], layer.frod_U["default"] = p["V"], p["U"]
        layer.frod_s_indices["default"] = torch.stack([p["I"] // n, p["I"] % n])
        L.data.copy_(p["Lambda"])
        s.data.copy_(p["s"])
        return {"Lambda": lambda: L.grad, "s": lambda: s.grad}

    return FrodConfig(sparse_rate=method.rate, progressbar=False, target_modules=["lin"]), put
