"""PEFT's PVERA."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, new


@dialect
class Pvera(Dialect):
    type = "PVERA"
    methods = ("pvera",)
    kinds = DENSE
    names = {"b": "pvera_lambda_b", "d": "pvera_lambda_d"}
    shared = {"model.A": "base_model.pvera_A", "model.B": "base_model.pvera_B"}
    dropout = "pvera_dropout"
    handled = frozenset({"r", "projection_prng_key", "save_projection", "d_initial"})
    neutral = {"bias": ("none",), "sample_at_inference": (False,)}
    ignored = frozenset({"fan_in_fan_out", "init_weights", "generator_seed"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "d_initial": method.d0, "projection_prng_key": method.seed, "save_projection": True}

    def method(self, f: dict[str, Any]) -> Method:
        return new("pvera", r=f.get("r", 256), d0=f.get("d_initial", 0.1), seed=f.get("projection_prng_key", 0))

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """Without save_projection PEFT draws A, then B, from one torch generator; so they are drawn here."""
        if config.get("save_projection", True):
            return plan
        shapes = [a.site.shape for a in plan.resolve(model) if a.site.kind in self.kinds]
        r, (m, n) = config.get("r", 256), (max(s[0] for s in shapes), max(s[1] for s in shapes))
        generator = torch.Generator(device="cpu").manual_seed(config.get("projection_prng_key", 0))
        for key, shape in (("base_model.pvera_A", (2 * r, n)), ("base_model.pvera_B", (m, r))):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))  # in torch's order of operations
            tensors[key] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return plan
