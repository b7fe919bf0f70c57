"""LoBiReFT: the closed form over a hidden state (it is in pyreft, not in PEFT)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.stream.lobireft import LoBiReFT
from ..frames import gram_schmidt

METHOD = LoBiReFT(r=4)


def closed(method: Any, W: Any, b: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """R by Gram-Schmidt on the columns of U."""
    R = gram_schmidt(p["U"])
    return x + R @ p["c"]
