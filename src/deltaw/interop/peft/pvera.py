"""PEFT's PVERA."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, new
from .projections import draw


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
        return draw(self, config, tensors, plan, model, rows=2)
