"""PaCA: the closed form, columns exchanged one by one (HF PEFT has no such method)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...methods.structure.paca import PaCA

METHODS = (PaCA(r=3, alpha=3.0), PaCA(r=2, alpha=5.0, columns="norm"))


def closed(method: PaCA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    where = p["J"].tolist()
    s = method.alpha / method.r
    columns = [s * p["Wc"][:, where.index(j)] if j in where else W[:, j] for j in range(W.shape[1])]
    y = x @ torch.stack(columns)
    return y if b is None else y + b
