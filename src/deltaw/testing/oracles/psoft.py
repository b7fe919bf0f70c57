"""PSOFT: the closed form, and HF PEFT given our singular vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.psoft import PSOFT

METHODS = (PSOFT(r=4), PSOFT(r=3))
METHOD = METHODS[0]
PEFT_BASE = torch.float32


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """W' = W - W_r + B R A; the factors are checked against W, since signs of singular vectors are free."""
    r, q = method.r, list(p["q"].unbind())
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(p["B"].to(W.dtype) @ p["A"].to(W.dtype), (U[:, :r] * S[:r]) @ Vh[:r], rtol=1e-5, atol=1e-5)
    zero = torch.zeros((), dtype=W.dtype)
    rows = [[zero] * r for _ in range(r)]
    for i in range(r):
        for j in range(i + 1, r):
            rows[i][j] = q.pop(0)
            rows[j][i] = -rows[i][j]
    Q, eye = torch.stack([torch.stack(row) for row in rows]), torch.eye(r, dtype=W.dtype)
    C = (eye + Q) @ torch.linalg.inv(eye - Q)
    y = x @ (W + p["B"] @ (torch.diag(p["beta"]) @ C @ torch.diag(p["alpha"]) - eye) @ p["A"]).mT
    return y if b is None else y + b


def peft(method: Any) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import PsoftConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        scale, R = layer.scaling["default"], layer.psoft_R["default"]
        layer._psoft_A_cache["default"], layer._psoft_B_cache["default"] = p["A"], p["B"] / scale
        for theirs, name in ((R.weight, "q"), (R.vector_b, "beta"), (R.vector_a, "alpha")):
            theirs.data.copy_(p[name])
        return {"q": lambda: R.weight.grad, "beta": lambda: R.vector_b.grad, "alpha": lambda: R.vector_a.grad}

    return PsoftConfig(r=method.r, psoft_alpha=7, target_modules=["lin"]), put
