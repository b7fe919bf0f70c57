"""PEFT's PEANUT."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Assignment
from ...spec import Method
from .dialect import Dialect, P, dialect, new, plain

STACKS = {"E": "peanut_encoders", "D": "peanut_decoders"}


@dialect
class Peanut(Dialect):
    type = "PEANUT"
    methods = ("peanut",)
    kinds = frozenset({"linear"})
    handled = frozenset({"r", "depth", "scaling"})
    neutral = {"act_fn": ("relu",)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "depth": method.depth, "scaling": plain(method.s)}

    def method(self, f: dict[str, Any]) -> Method:
        return new("peanut", r=f.get("r", 32), depth=f.get("depth", 0), s=f.get("scaling", 1.0))

    def pack(self, a: Assignment, p: P) -> P:
        out = {f"peanut_{k}.weight": p[k] for k in "AB"}
        return out | {f"{STACKS[k]}.{i}.weight": t for k in STACKS if k in p for i, t in enumerate(p[k])}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        out = {k: t[f"peanut_{k}.weight"] for k in "AB"}
        return out | {k: torch.stack([t[f"{STACKS[k]}.{i}.weight"] for i in range(len(own[k]))]) for k in STACKS if k in own}
