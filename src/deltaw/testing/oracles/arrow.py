"""Arrow: expert by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.route.arrow import Arrow

IN_PEFT = True
METHODS = [Arrow(ranks=(2, 3, 1), top_k=2, tau=0.7), Arrow(ranks=(2, 2), top_k=1)]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ W.mT if b is None else x @ W.mT + b
    q = (x @ p["V"].mT).abs()
    least = q.sort(-1, descending=True).values[..., method.top_k - 1, None]
    e = torch.where(q >= least, torch.exp(q / method.tau), 0.0)
    w, at = e / e.sum(-1, keepdim=True), 0
    for k, r in enumerate(method.ranks):
        y = y + w[..., k, None] * (x @ p["A"][at : at + r].mT @ p["B"][:, at : at + r].mT)
        at += r
    return y
