"""VB-LoRA: the closed form, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.vb_lora import VBLoRA

METHODS = (VBLoRA(r=3, h=12, b=4, k=2), VBLoRA(r=2, h=6, b=8, k=3))
METHOD = METHODS[0]


def mixture(logits: Tensor, V: Tensor, k: int) -> Tensor:
    """One tile."""
    best = sorted(range(len(logits)), key=lambda e: -float(logits[e].detach()))[:k]
    w = torch.stack([logits[e].exp() for e in best])
    return sum(w[i] * V[e] for i, e in enumerate(best)) / w.sum()  # type: ignore[return-value]


def closed(method: VBLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    k, V = method.k, p["V"]
    A = torch.stack([torch.cat([mixture(t, V, k) for t in row]) for row in p["La"]])
    B = torch.stack([torch.cat([mixture(t, V, k) for t in p["Lb"][:, j]]) for j in range(method.r)], 1)
    y = x @ (W + B @ A).mT
    return y if b is None else y + b


def peft(method: VBLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import VBLoRAConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        own = {"V": layer.vblora_vector_bank, "La": layer.vblora_logits_A, "Lb": layer.vblora_logits_B}
        for name, theirs in own.items():
            theirs["default"].data.copy_(p[name])
        return {name: lambda t=theirs["default"]: t.grad for name, theirs in own.items()}  # type: ignore[misc]

    fields = {"num_vectors": method.h, "vector_length": method.b, "topk": method.k}
    return VBLoRAConfig(r=method.r, target_modules=["lin"], **fields), put
