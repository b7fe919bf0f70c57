"""The random projections that PEFT's VeRA and PVeRA draw again when a file leaves them out."""

from __future__ import annotations

import math
from typing import Any

import torch

from .dialect import Dialect, P


def draw(d: Dialect, config: dict[str, Any], tensors: P, plan: Any, model: Any, rows: int) -> Any:
    """Without save_projection PEFT draws A (rows · r, n), then B (m, r), from one torch generator; so they are drawn here
    and put among the tensors, under the two names of `d.shared`. Returns the plan."""
    if config.get("save_projection", True):
        return plan
    shapes = [a.site.shape for a in plan.resolve(model) if a.site.kind in d.kinds]
    r, (m, n) = config.get("r", 256), (max(s[0] for s in shapes), max(s[1] for s in shapes))
    generator = torch.Generator(device="cpu").manual_seed(config.get("projection_prng_key", 0))
    for key, shape in zip(d.shared.values(), ((rows * r, n), (m, r)), strict=True):
        bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))  # in PEFT's order of operations
        tensors[key] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return plan
