"""PEFT's VERA."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...spec import Method
from .dialect import Dialect, P, dialect, new


@dialect
class Vera(Dialect):
    type = "VERA"
    methods = ("vera",)
    names = {"b": "vera_lambda_b", "d": "vera_lambda_d"}
    shared = {"model.A": "base_model.vera_A", "model.B": "base_model.vera_B"}
    dropout = "vera_dropout"
    handled = frozenset({"r", "projection_prng_key", "save_projection", "d_initial"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "d_initial": method.d0, "projection_prng_key": method.seed, "save_projection": True}

    def method(self, f: dict[str, Any]) -> Method:
        return new("vera", r=f.get("r", 256), d0=f.get("d_initial", 0.1), seed=f.get("projection_prng_key", 0))

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """Without save_projection PEFT draws A, then B, from one torch generator; so they are drawn here."""
        if config.get("save_projection", True):
            return plan
        shapes = [a.site.shape for a in plan.resolve(model) if a.site.kind in self.kinds]
        r, (m, n) = config.get("r", 256), (max(s[0] for s in shapes), max(s[1] for s in shapes))
        generator = torch.Generator(device="cpu").manual_seed(config.get("projection_prng_key", 0))
        for key, shape in (("base_model.vera_A", (r, n)), ("base_model.vera_B", (m, r))):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))  # in PEFT's order of operations
            tensors[key] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return plan
