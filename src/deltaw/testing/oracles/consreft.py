"""ConsReFT: the closed form over a hidden state (it is in pyreft, not in PEFT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.stream.consreft import ConsReFT

METHOD = ConsReFT(r=4)


def closed(method: Any, W: Any, b: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """R by Gram-Schmidt on the columns of U."""
    basis: list[Tensor] = []
    for u in p["U"].unbind(1):
        for q in basis:
            u = u - (q @ u) * q
        basis.append(u / u.pow(2).sum().sqrt())
    R = torch.stack(basis, 1)
    return x + (p["c"] - x @ R) @ R.mT
