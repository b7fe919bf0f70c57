"""X-LoRA: the closed form at one layer. HF PEFT's needs a whole language model: see tests/test_methods_two.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.route.xlora import XLoRA

IN_PEFT = True
METHODS = (
    XLoRA(ranks=(2, 3, 1), hidden_size=16, tau=0.7, gamma=1.5),
    XLoRA(ranks=(2, 0, 3), hidden_size=16, top_k=2, scope="site"),
)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Expert by expert, the weight multiplying the expert's input; p["h"] is the base's last hidden state."""
    e = torch.exp((p["h"] @ p["V"].mT + p["c"]) / method.tau)
    w = e / e.sum(-1, keepdim=True)
    if method.top_k:
        w = torch.where(w >= w.sort(-1, descending=True).values[..., method.top_k - 1, None], w, 0.0)
    y, start = x @ W.mT, 0
    y = y if b is None else y + b
    for k, r in enumerate(method.ranks):
        A, B = p["A"][start : start + r], p["B"][:, start : start + r]
        y = y + method.gamma * ((w[..., k, None] * x) @ A.mT) @ B.mT
        start += r
    return y
