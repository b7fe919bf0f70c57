"""PEFT's LOKR."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...plan import Assignment
from ...spec import Method
from .dialect import P, dialect, kernel_of, new, plain
from .lycoris import Lycoris


@dialect
class Lokr(Lycoris):
    type = "LOKR"
    methods = ("lokr",)
    names = {
        "C": "lokr_w1",
        "C_b": "lokr_w1_a",
        "C_a": "lokr_w1_b",
        "D": "lokr_w2",
        "D_b": "lokr_w2_a",
        "D_a": "lokr_w2_b",
    }
    handled = frozenset({"r", "alpha", "decompose_both", "decompose_factor"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "alpha": plain(method.alpha), "decompose_both": method.decompose_both,
                "decompose_factor": method.decompose_factor}  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        return new("lokr", r=f.get("r", 8), alpha=f.get("alpha", 8), decompose_both=f.get("decompose_both", False),
                   decompose_factor=f.get("decompose_factor", -1))  # fmt: skip

    def refusal(self, a: Assignment) -> str | None:
        if isinstance(a.site.module, nn.Conv1d) and "D" in a.method.declare(a.site):
            return "PEFT's LoKr of nn.Conv1d with a full second factor lays the Kronecker product out wrongly"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        out = super().pack(a, p)
        if a.site.kind == "conv" and "D" in p:  # the full second factor keeps the kernel's axes
            kernel = kernel_of(a)[2:]
            out["lokr_w2"] = p["D"].reshape(p["D"].shape[0], -1, *kernel)
        return out
