"""PEFT's TINYLORA."""

from __future__ import annotations

from typing import Any

import torch

from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, Dialect, P, bare, dialect, dialect_of, new

V = "base_model.tinylora_v."


@dialect
class TinyLora(Dialect):
    """v is kept by the number of its group of consecutive modules. Read are one v a module, and one v for all."""

    type = "TINYLORA"
    methods = ("tinylora",)
    kinds = DENSE
    names = {"A": "tinylora_A", "B": "tinylora_B", "P": "tinylora_P"}
    dropout = "tinylora_dropout"
    handled = frozenset({"r", "u", "projection_seed", "save_projection", "weight_tying"})
    neutral = {"bias": ("none",), "weight_tying": (0.0, 0, 1.0, 1)}
    ignored = frozenset({"fan_in_fan_out", "init_weights", "init_v_bound"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        tying = 0.0 if method.scope == "site" else 1.0
        return {"r": method.r, "u": method.u, "projection_seed": method.seed, "save_projection": True, "weight_tying": tying}

    def method(self, f: dict[str, Any]) -> Method:
        scope, seed = "model" if f.get("weight_tying") else "site", f.get("projection_seed", 42)
        return new("tinylora", r=f.get("r", 2), u=f.get("u", 64), seed=seed, scope=scope)

    def pack(self, a: Assignment, p: P) -> P:
        return {self.names[k]: p[k] for k in self.names}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[self.names[k]] for k in self.names}

    def ours(self, adapted: Any, state: P) -> dict[str, str]:
        """Our key of every v, PEFT's key."""
        own = [a for a in adapted.assignments if dialect_of(a.method) is self and a.site.kind in self.kinds]
        words = {f"{a.site.name if bare(a.method)[0].scope == 'site' else bare(a.method)[0].scope}.v": a for a in own}
        if len(words) not in (1, len(own)):
            raise Inexpressible(f"PEFT's TINYLORA has other groups of modules with one v than these {len(words)}")
        return {k: f"{V}{i}" for i, k in enumerate(words)}

    def pack_shared(self, adapted: Any, state: P) -> P:
        return {theirs: state[k] for k, theirs in self.ours(adapted, state).items()}

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        return {k: t[theirs] for k, theirs in self.ours(adapted, state).items()}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """Without save_projection PEFT draws P from a seed for every module."""
        if not config.get("save_projection", True):
            u, seed = config.get("u", 64), config.get("projection_seed", 42)
            for k, a in enumerate(a for a in plan.resolve(model) if a.site.kind in self.kinds):
                r, generator = a.method.r, torch.Generator().manual_seed(seed + k)
                P_k = torch.normal(0.0, r**-0.5, (u, r, r), generator=generator)
                tensors[f"base_model.model.{a.site.name}.tinylora_P"] = P_k
        return plan
