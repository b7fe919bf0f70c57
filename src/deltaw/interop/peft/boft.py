"""PEFT's BOFT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...plan import Assignment
from ...spec import Method
from .blocks import Blocks, sized
from .dialect import P, dialect, new


@dialect
class Boft(Blocks):
    type = "BOFT"
    methods = ("boft",)
    names = {"D": "boft_R", "s": "boft_s"}
    handled = frozenset({"boft_block_size", "boft_block_num", "boft_n_butterfly_factor"})
    ignored = Blocks.ignored | {"boft_dropout"}  # blocks set to I in training; a warning says so

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"boft_block_size": method.block_size, "boft_block_num": 0, "boft_n_butterfly_factor": method.factors}

    def method(self, f: dict[str, Any]) -> Method:
        return new("boft", block_size=f.get("boft_block_size") or 2, factors=f.get("boft_n_butterfly_factor", 1))

    def pack(self, a: Assignment, p: P) -> P:
        return {"boft_R": p["D"], "boft_s": p["s"][:, None]}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """PEFT without its CUDA kernel trains one factor, whatever the configuration says; the tensors tell."""
        num, size = config.get("boft_block_num", 0), config.get("boft_block_size", 4)
        plan = sized(plan, model, lambda n: n // num if num else size)
        stored = {len(t) for key, t in tensors.items() if key.endswith(".boft_R")}
        if len(stored) == 1 and (f := stored.pop()) != plan.method.factors:
            plan = replace(plan, method=replace(plan.method, factors=f))
        return plan
