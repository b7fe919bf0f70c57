"""PEFT's LOHA."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import P, dialect, new, plain
from .lycoris import Lycoris


@dialect
class Loha(Lycoris):
    type = "LOHA"
    methods = ("loha",)
    names = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}
    handled = frozenset({"r", "alpha"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "alpha": plain(method.alpha)}

    def method(self, f: dict[str, Any]) -> Method:
        return new("loha", r=f.get("r", 8), alpha=f.get("alpha", 8))
