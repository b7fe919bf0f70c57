"""PEFT's GRALORA."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import Dialect, P, dialect, new, plain


@dialect
class Gralora(Dialect):
    type = "GRALORA"
    methods = ("gralora",)
    names = {"A": "gralora_A", "B": "gralora_B", "A_h": "gralora_A_general.weight", "B_h": "gralora_B_general.weight"}
    dropout = "gralora_dropout"
    handled = frozenset({"r", "alpha", "hybrid_r", "gralora_k"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "alpha": plain(method.alpha), "gralora_k": method.k, "hybrid_r": method.hybrid_r}

    def method(self, f: dict[str, Any]) -> Method:
        return new(
            "gralora",
            r=f.get("r", 32),
            alpha=f.get("alpha", 64),
            k=f.get("gralora_k", 2),
            hybrid_r=f.get("hybrid_r", 0),
        )

    def pack(self, a: Assignment, p: P) -> P:
        return {self.names[k]: v.mT if k in "AB" else v for k, v in p.items()}  # PEFT's blocks are transposed

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[self.names[k]].mT if k in "AB" else t[self.names[k]] for k in own}
