"""PEFT's HRA."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...plan import Assignment
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Hra(Dialect):
    type = "HRA"
    methods = ("hra",)
    kinds = LINEAR | {"conv"}
    names = {"U": "hra_u"}
    handled = frozenset({"r"})
    neutral = {"bias": ("none",), "apply_GS": (False,)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r}

    def method(self, f: dict[str, Any]) -> Method:
        return new("hra", r=f.get("r", 8))

    def refusal(self, a: Assignment) -> str | None:
        c: Any = a.site.module
        if a.site.kind == "conv" and not (isinstance(c, nn.Conv2d) and c.groups == 1 and len(set(c.kernel_size)) == 1):
            return "PEFT's HRA adapts nn.Conv2d with a square kernel and one group only"
        return super().refusal(a)
