"""PEFT's VERA."""

from __future__ import annotations

from typing import Any

from ...spec import Method
from .dialect import Dialect, P, dialect, new
from .projections import draw


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
        return draw(self, config, tensors, plan, model, rows=1)
