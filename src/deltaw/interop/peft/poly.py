"""PEFT's POLY."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import Dialect, P, dialect, new

SIZES = {"r": "r", "tasks": "n_tasks", "skills": "n_skills", "splits": "n_splits"}


@dialect
class Poly(Dialect):
    type = "POLY"
    methods = ("poly",)
    kinds = frozenset({"linear"})
    names = {"A": "poly_lora_A", "B": "poly_lora_B", "Z": "poly_router.module_logits"}
    handled = frozenset(SIZES.values())
    neutral = {"poly_type": ("poly",)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {theirs: getattr(method, ours) for ours, theirs in SIZES.items()}

    def method(self, f: dict[str, Any]) -> Method:
        usual = {"r": 8, "n_tasks": 1, "n_skills": 4, "n_splits": 1}
        return new("poly", **{ours: f.get(theirs, usual[theirs]) for ours, theirs in SIZES.items()})

    def pack(self, a: Assignment, p: P) -> P:
        return {self.names[k]: v if k == "Z" else v.mT.contiguous() for k, v in p.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[self.names[k]] if k == "Z" else t[self.names[k]].mT.contiguous() for k in own}
