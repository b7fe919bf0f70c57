"""PEFT's VBLORA."""

from __future__ import annotations

from typing import Any

import torch

from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, new

FAR = -1e4  # a logit that is never among the largest


@dialect
class VbLora(Dialect):
    type = "VBLORA"
    methods = ("vb_lora",)
    kinds = DENSE
    names = {"La": "vblora_logits_A", "Lb": "vblora_logits_B"}
    shared = {"model.V": "base_model.vblora_vector_bank"}
    dropout = "vblora_dropout"
    handled = frozenset({"r", "num_vectors", "vector_length", "topk", "save_only_topk_weights"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_vector_bank_bound", "init_logits_std"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        sizes = {"r": method.r, "num_vectors": method.h, "vector_length": method.b, "topk": method.k}
        return sizes | {"save_only_topk_weights": False}

    def method(self, f: dict[str, Any]) -> Method:
        h, b, k = f.get("num_vectors", 256), f.get("vector_length", 256), f.get("topk", 2)
        return new("vb_lora", r=f.get("r", 4), h=h, b=b, k=k)

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """save_only_topk_weights: k places and k - 1 weights for every tile, as logits again."""
        for key in [k for k in tensors if k.endswith("_topk_indices")]:
            stem = key.removesuffix("_topk_indices")
            place, w = tensors.pop(key).long(), tensors.pop(f"{stem}_topk_weights")
            w = torch.cat([w, 1.0 - w.sum(-1, keepdim=True)], -1).clamp_min(torch.finfo(w.dtype).tiny)
            tensors[stem] = torch.full((*w.shape[:-1], config.get("num_vectors", 256)), FAR).scatter(-1, place, w.log())
        return plan
