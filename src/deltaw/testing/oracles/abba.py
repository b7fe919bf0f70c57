"""ABBA: the paper's formula (PEFT has no ABBA; the authors' code scales differently)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.abba import ABBA

METHOD = ABBA(r1=2, r2=3, alpha=2.0)


def closed(method: ABBA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    s = method.alpha**2 / (method.r1 * method.r2) ** 0.5
    return F.linear(x, W + s * (p["B1"] @ p["A1"]) * (p["B2"] @ p["A2"]), b)
