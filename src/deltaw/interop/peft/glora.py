"""PEFT's GLORA."""

from __future__ import annotations

from typing import Any

from ...errors import StateMismatch
from ...plan import Assignment
from ...spec import Method
from .dialect import Dialect, P, dialect, new

PARTS = {"": "X", "_d": "Xd", "_u": "Xu"}


@dialect
class Glora(Dialect):
    """A term that is absent is a tensor of zeros in PEFT's file."""

    type = "GLORA"
    methods = ("glora",)
    kinds = frozenset({"linear"})
    names = {f"{word}{part}": f"glora_{word}.{x}" for word in "ABCDE" for part, x in PARTS.items()}
    handled = frozenset({"r", "config_A_B", "config_C", "config_D_E"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "config_A_B": method.A_B, "config_C": method.C, "config_D_E": method.D_E}

    def method(self, f: dict[str, Any]) -> Method:
        return new("glora", r=f.get("r", 8), A_B=f.get("config_A_B", "lora"), C=f.get("config_C", "lora"),
                   D_E=f.get("config_D_E", "constant"))  # fmt: skip

    def pack(self, a: Assignment, p: P) -> P:
        m, n = a.site.shape
        like = next(iter(p.values()))
        sizes = {"A": (m, n), "B": (m, n), "C": (n, 1), "D": (m,), "E": (m,)}
        absent = {w: like.new_zeros(size) for w, size in sizes.items() if not {w, f"{w}_d"} & set(p)}
        return super().pack(a, p) | {f"glora_{w}.zeros": t for w, t in absent.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        if bad := [k for k, v in t.items() if k.endswith(".zeros") and v.any()]:
            raise StateMismatch(f"{a.site.name}: {bad[0]} stands for an absent term of GLoRA, and is not zero")
        return super().unpack(a, t, own)
