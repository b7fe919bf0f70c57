"""PEFT's SHIRA."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Assignment
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Shira(Dialect):
    """PEFT stores the positions as (row, column); how they were chosen does not matter after that."""

    type = "SHIRA"
    methods = ("shira",)
    kinds = LINEAR
    handled = frozenset({"r"})
    ignored = frozenset({"init_weights", "fan_in_fan_out", "mask_type", "random_seed"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "mask_type": "random"}

    def method(self, f: dict[str, Any]) -> Method:
        return new("shira", r=f.get("r", 32))

    def pack(self, a: Assignment, p: P) -> P:
        n = a.site.shape[1]
        return {"shira_weight": p["v"], "shira_indices": torch.stack([p["I"] // n, p["I"] % n]).to(torch.int32)}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        row, column = t["shira_indices"].to(torch.int64)
        return {"v": t["shira_weight"], "I": row * a.site.shape[1] + column}
