"""HUT: entry by entry (no public code; at s = 1 the weight is that of PEFT's HiRA, see tests/test_methods_orthogonal.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.hut import HUT

METHOD = HUT(r=3, alpha=6.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    gate = 1 + method.alpha / method.r * torch.einsum("ik,kj->ij", p["M_A"], p["M_B"])
    y = torch.einsum("ij,...j->...i", gate * W, x)
    return y if b is None else y + b
