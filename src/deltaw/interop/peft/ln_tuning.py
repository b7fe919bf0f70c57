"""PEFT's LN_TUNING."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import Dialect, P, dialect, new

PREFIX = "ln_tuning_layers."


@dialect
class LnTuning(Dialect):
    type = "LN_TUNING"
    methods = ("ln_tuning",)
    kinds = frozenset({"module"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {}

    def method(self, f: dict[str, Any]) -> Method:
        return new("ln_tuning")

    def pack(self, a: Assignment, p: P) -> P:
        return {PREFIX + k: v for k, v in p.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[PREFIX + k] for k in own}
