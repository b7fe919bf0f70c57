"""SNELLA between its steps: the kernel entry by entry, survivors by sorting (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.snella import SNELLA

METHOD = SNELLA(q=4, sparsity=0.4, every=2, T=3)


def closed(method: SNELLA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    rows = []
    for i in range(W.shape[0]):
        d = [(p["P"][h] - p["Q"][h, i]).pow(2).sum(1).sqrt() for h in (0, 1)]
        rows.append(0.1 * d[0] - 0.1 * d[1])
    D = torch.stack(rows)
    e = torch.exp(D / p["gamma"])
    K = (D + p["a"] * e / e.sum(0) + p["c"]).flatten()
    gate = K.detach().abs().clone()
    gate[gate.argsort()[: W.numel() - int(p["V"])]] = 0.0
    return F.linear(x, W + (K * gate).view(W.shape), b)
