"""PEFT's ROAD."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Road(Dialect):
    type = "ROAD"
    methods = ("road",)
    kinds = LINEAR
    names = {"theta": "road_theta", "alpha": "road_alpha"}
    handled = frozenset({"variant", "group_size"})
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"variant": method.variant, "group_size": method.group_size}

    def method(self, f: dict[str, Any]) -> Method:
        return new("road", variant=f.get("variant", "road_1"), group_size=f.get("group_size", 64))
