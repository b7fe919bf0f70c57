"""PEFT's DELORA."""

from __future__ import annotations

from typing import Any

from ...files.foreign import Inexpressible
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new, plain


@dialect
class Delora(Dialect):
    type = "DELORA"
    methods = ("delora",)
    kinds = LINEAR
    names = {"A": "delora_A", "B": "delora_B", "l": "delora_lambda", "w": "delora_w_norm"}
    dropout = "module_dropout"
    patterns = {"r": "rank_pattern", "delora_lambda": "lambda_pattern"}
    handled = frozenset({"r", "delora_lambda", "lambda_pattern"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        if method.twin:
            raise Inexpressible("PEFT's DELORA has no frozen twin that is taken off again")
        return {"r": method.r, "delora_lambda": plain(method.strength)}

    def method(self, f: dict[str, Any]) -> Method:
        return new("delora", r=f.get("r", 8), strength=f.get("delora_lambda", 15))
