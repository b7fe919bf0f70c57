"""Gated banks: the update as a sum of rank-one terms with a number each, B diag(c) A."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import random as rng
from ..spec import Declared, Fill, Param, kaiming, zeros
from .factors import positive

SLOTS = {"B": 1, "c": 0, "A": 0}
"""For `Method.slots`: along which axis of each the terms are numbered."""


def bank(m: int, n: int, r: int, B: Fill = zeros, c: Fill = zeros, A: Fill = kaiming) -> Declared:
    """B (m, r), c (r,), A (r, n) with these starts; rules may gate, drop and add terms."""
    positive(r=r)
    return {"B": Param((m, r), B, free=1), "c": Param((r,), c, free=0), "A": Param((r, n), A, free=0)}


def leading(seed: int, step: int, r: int) -> Tensor:
    """(1, .., 1, 0, .., 0) with b ones, b uniform on 1 .. r: the same at all sites, in all processes, and after a resume."""
    b = 1 + min(int(float(rng.uniform((1,), rng.key(seed, "prefix", step), 0.0, float(r)))), r - 1)
    return (torch.arange(r) < b).float()
