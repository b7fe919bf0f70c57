"""GoRA's rank rule by hand."""

from __future__ import annotations

import math

from ....methods.rank.gora import GoRA
from ....ops import as_op
from ....spec import METHODS, Start
from ...laws.base import must
from ...tiny import values


def check() -> str:
    lora = METHODS["lora"](r=8)  # type: ignore[call-arg]
    shapes = {"a": (40, 30), "b": (60, 30), "c": (30, 60)}
    W = {k: values(*s, name=k) for k, s in shapes.items()}
    G = {k: c * values(*shapes[k], name=f"g{k}") for k, c in (("a", 1.0), ("b", 3.0), ("c", 0.2))}
    starts = [Start(k, "linear", as_op(W[k]), 0, lora) for k in shapes]
    got = GoRA(r_min=2, r_max=20).ranks(starts, {k: {"gradient": G[k]} for k in shapes})
    I = {k: float((W[k] * G[k]).abs().mean()) for k in shapes}  # noqa: E741
    N = sum(math.sqrt(m + n) * 8 for m, n in shapes.values())
    want = {k: min(max(int(round(N * I[k] / sum(I.values())) // math.sqrt(sum(shapes[k]))), 2), 20) for k in shapes}
    must(got == want, f"found {got}, expected {want}")
    return f"ranks {got}"
