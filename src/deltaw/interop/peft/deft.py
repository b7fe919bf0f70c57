"""PEFT's DEFT: our `deft`, and with para=True our `para`."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import Dialect, P, dialect, new, plain


@dialect
class Deft(Dialect):
    type = "DEFT"
    methods = ("deft", "para")
    kinds = frozenset({"linear", "conv1d_hf"})
    names = {"P": "deft_P", "R": "deft_R"}
    handled = frozenset({"r", "alpha", "decomposition_method", "para"})
    neutral = {"bias": ("none",), "deft_dropout": (0.0, 0)}
    ignored = frozenset({"init_weights", "init_scale", "fan_in_fan_out"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        alpha = getattr(method, "alpha", 0.0)
        return {"r": method.r, "decomposition_method": method.decomposition, "para": method.key == "para",
                "alpha": plain(alpha) if alpha else None}  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        word = {"r": f.get("r", 8), "decomposition": f.get("decomposition_method", "relu")}
        return new("para", **word) if f.get("para") else new("deft", alpha=float(f.get("alpha") or 0.0), **word)
