"""Gated banks: the update as a sum of rank-one terms with a number each, B diag(g) A."""

from __future__ import annotations

from ..spec import Declared, Fill, Param, constant, kaiming, zeros
from .factors import positive

SLOTS = {"B": 1, "g": 0, "A": 0}
"""For `Method.slots`: along which axis of each the terms are numbered."""


def bank(m: int, n: int, r: int, B: Fill = zeros, g: Fill = constant(1.0), A: Fill = kaiming) -> Declared:
    """B (m, r), g (r,), A (r, n) with these starts; rules may gate, drop and add terms."""
    positive(r=r)
    return {"B": Param((m, r), B, free=1), "g": Param((r,), g, free=0), "A": Param((r, n), A, free=0)}
