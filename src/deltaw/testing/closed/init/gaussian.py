"""B = 0, and an A whose entries are as large as stated."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.gaussian import Gaussian

from ...laws.base import must

INITS, DRAWN = [Gaussian()], True


def closed(init: Gaussian, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    A = stats["A"]
    size = float(A.square().mean().sqrt()) * r
    must(0.75 < size < 1.25, f"the root mean square of A is {size:.2f} / r over {A.numel()} entries")  # 1 / sqrt(r) would be 1.7
    must(len(A.unique()) == A.numel(), "entries of A are repeated")
    return torch.zeros(len(W), r, dtype=W.dtype), A, None
