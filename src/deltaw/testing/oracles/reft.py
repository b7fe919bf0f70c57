"""LoReFT: the closed form over a hidden state (it is in pyreft, not in PEFT)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.stream.reft import ReFT
from ..frames import gram_schmidt

METHODS = (ReFT(r=4), ReFT(r=1))


def closed(method: Any, W: Any, b: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """h + R (Wp h + c - Rᵀ h), x being h; R by Gram-Schmidt on the columns of U. W and b are not used: the site has none."""
    R = gram_schmidt(p["U"])
    return x + (x @ p["Wp"].mT + p["c"] - x @ R) @ R.mT
