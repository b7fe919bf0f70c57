"""PEFT's C3A."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new, no_anchors


@dialect
class C3A(Dialect):
    type = "C3A"
    methods = ("c3a",)
    kinds = LINEAR
    names = {"w": "c3a_kernel"}
    patterns = {"block_size": "block_size_pattern"}
    handled = frozenset({"block_size", "block_size_pattern"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"block_size": method.b}

    def method(self, f: dict[str, Any]) -> Method:
        return new("c3a", b=f.get("block_size", 256))

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        no_anchors(config, "block_size_pattern")
