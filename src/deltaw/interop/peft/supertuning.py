"""PEFT's SUPERTUNING."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Assignment
from ...spec import Method
from .config import PREFIX
from .dialect import LINEAR, Dialect, P, dialect, new, plain


@dialect
class SuperTuning(Dialect):
    """PEFT stores flat positions as int32, or none: then they follow from the base when it loads, in the order of torch.topk."""

    type = "SUPERTUNING"
    methods = ("supertuning",)
    kinds = LINEAR
    names = {
        "v": "supertuning_values", "I": "supertuning_indices", "A": "supertuning_lora_A.weight",
        "B": "supertuning_lora_B.weight",
    }  # fmt: skip
    handled = frozenset({"sparsity", "select_top", "r", "lora_alpha", "save_precomputed_indices"})
    neutral = {"lora_dropout": (0.0, 0)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        supra = {"r": method.r, "lora_alpha": plain(method.scale * method.r)} if method.r else {"r": None, "lora_alpha": None}
        return {"sparsity": method.sparsity, "select_top": method.select_top, **supra}

    def method(self, f: dict[str, Any]) -> Method:
        alpha, r = f.get("lora_alpha"), f.get("r") or 0
        top, sparsity = f.get("select_top", True), float(f.get("sparsity", 0.99))
        return new("supertuning", sparsity=sparsity, select_top=top, r=r, alpha=None if alpha is None else float(alpha))

    def pack(self, a: Assignment, p: P) -> P:
        return super().pack(a, p | {"I": p["I"].to(torch.int32)})

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        found = super().unpack(a, t, own)
        return found | {"I": found["I"].to(torch.int64)}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        for a in plan.resolve(model) if not config.get("save_precomputed_indices", True) else ():
            key = f"{PREFIX}{a.site.name}."
            if a.method.key in self.methods and key + self.names["v"] in tensors:
                score = a.site.leaf().op.dense().detach().abs().flatten()
                K = len(tensors[key + self.names["v"]])
                tensors.setdefault(key + self.names["I"], score.topk(K, largest=a.method.select_top).indices.to(torch.int32))
        return plan
