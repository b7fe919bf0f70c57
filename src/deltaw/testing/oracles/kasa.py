"""KaSA: the truncated SVD and the update, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.kasa import KaSA

METHOD = KaSA(r=4, alpha=6.0)


def closed(method: KaSA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    k = len(S) - method.r
    kept = U[:, :k] @ torch.diag(S[:k]) @ V[:k]
    return F.linear(x, kept + method.alpha / method.r * p["B"] @ torch.diag(p["d"]) @ p["A"], b)


def peft(method: KaSA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig
    from peft.tuners.lora.config import KasaConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B, d = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_diag["default"]
        for theirs, name in ((A, "A"), (B, "B"), (d, "d")):
            theirs.data.copy_(p[name])
        return {"A": lambda: A.grad, "B": lambda: B.grad, "d": lambda: d.grad}

    config = LoraConfig(r=method.r, lora_alpha=method.alpha, kasa_config=KasaConfig(), target_modules=["lin"])
    return config, put
