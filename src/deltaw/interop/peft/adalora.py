"""PEFT's ADALORA, before its schedule has cut anything."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, P, dialect, new, plain
from .lora import Lora


@dialect
class AdaLora(Lora):
    type = "ADALORA"
    methods = ("adalora",)
    kinds = DENSE
    names = {"P": "lora_B", "E": "lora_E", "Q": "lora_A"}
    patterns = {}
    handled = frozenset({"init_r", "lora_alpha"})
    neutral = {**Lora.neutral, "bias": ("none",), "rank_pattern": (None, {}), "use_dora": (False,), "alpha_pattern": (None, {})}
    ignored = Lora.ignored | {
        "r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "init_lora_weights",
        "use_rslora",
    }  # fmt: skip

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"init_r": method.r, "target_r": method.r, "lora_alpha": plain(method.alpha), "total_step": 1}

    def method(self, f: dict[str, Any]) -> Method:
        r, alpha = f.get("init_r", 12), f.get("lora_alpha", 8)
        return new("adalora", r=r, alpha=alpha if alpha > 0 else float(r))

    def pack(self, a: Assignment, p: P) -> P:
        return {"lora_B": p["P"], "lora_E": p["E"][:, None], "lora_A": p["Q"]}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[self.names[k]].reshape(v.shape) for k, v in own.items()}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        return plan
