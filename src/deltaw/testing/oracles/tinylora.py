"""TinyLoRA: the closed form, and HF PEFT given our projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.tinylora import TinyLoRA

METHODS = (TinyLoRA(r=3, u=5), TinyLoRA(r=2, u=7, scope="model"))
METHOD = METHODS[0]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """W' = W + U √S (Σ v P) √S Vᵀ; the factors are checked against W, since signs of singular vectors are free."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    r = method.r
    torch.testing.assert_close(p["B"].to(W.dtype) @ p["A"].to(W.dtype), (U[:, :r] * S[:r]) @ Vh[:r], rtol=1e-5, atol=1e-5)
    R = sum(p["v"][i] * p["P"][i] for i in range(method.u))
    y = x @ W.mT + x @ p["A"].mT @ R.mT @ p["B"].mT  # type: ignore[union-attr]
    return y if b is None else y + b


def peft(method: Any) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import TinyLoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        v = layer.tinylora_v["default"]["0"]
        v.data.copy_(p["v"])
        for theirs, name in ((layer.tinylora_A, "A"), (layer.tinylora_B, "B"), (layer.tinylora_P, "P")):
            theirs["default"] = p[name]
        return {"v": lambda: v.grad}

    return TinyLoraConfig(r=method.r, u=method.u, target_modules=["lin"]), put
