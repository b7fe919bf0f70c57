"""What PEFT's OFT and BOFT have in common: one number for all sites, from which each site gets a block size of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...plan import Plan
from .dialect import LINEAR, Dialect


class Blocks(Dialect):
    kinds = LINEAR
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_weights"})


def sized(plan: Plan, model: Any, size: Callable[[int], int]) -> Plan:
    """The plan with block size size(n) at every site of n inputs."""
    sites = {a.site.name: size(a.site.shape[1]) for a in plan.resolve(model) if a.method == plan.method}
    if not sites:
        return plan
    values = list(sites.values())
    usual = max(set(values), key=values.count)
    method: Any = replace(plan.method, block_size=usual)  # type: ignore[type-var]
    apart = {f"^{re.escape(n)}": {"block_size": b} for n, b in sites.items() if b != usual}
    return replace(plan, method=method, overrides={**plan.overrides, **apart})
