"""PEFT's BEFT."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Beft(Dialect):
    type = "BEFT"
    methods = ("beft",)
    kinds = LINEAR
    names = {"beta": "beft_bias"}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {}

    def method(self, f: dict[str, Any]) -> Method:
        return new("beft")

    def pack(self, a: Assignment, p: P) -> P:
        return {"beft_bias": p["beta"][None]}
