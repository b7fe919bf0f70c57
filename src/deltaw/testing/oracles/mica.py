"""MiCA: the formula with B compared to an SVD, and HF PEFT (its start, and LoRA's forward, which MiCA's is)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.mica import MiCA

METHOD = MiCA(r=4, alpha=6.0)


def closed(method: MiCA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Bᵀ W Wᵀ B is diagonal and holds the r smallest squared singular values."""
    B, small = p["B"], torch.linalg.svdvals(W)[-method.r :].square()
    torch.testing.assert_close(B.mT @ B, torch.eye(method.r, dtype=W.dtype), rtol=0, atol=1e-10)
    torch.testing.assert_close(B.mT @ W @ W.mT @ B, torch.diag(small), rtol=0, atol=1e-10)
    return F.linear(x, W + method.alpha / method.r * B @ p["A"], b)


def peft(method: MiCA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        exact = layer.base_layer.weight.data
        layer.base_layer.weight.data = exact.float()  # PEFT's start refuses float64
        layer.mica_init("default")
        layer.base_layer.weight.data = exact
        assert not A.any()
        torch.testing.assert_close((B * p["B"].to(B)).sum(0).abs(), torch.ones(method.r).to(B), rtol=0, atol=1e-4)
        A.data = p["A"].clone()
        B.data = p["B"].clone()
        return {"A": lambda: A.grad}

    return LoraConfig(r=method.r, lora_alpha=method.alpha, target_modules=["lin"]), put
