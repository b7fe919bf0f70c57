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
    XLoRA(ranks=(2, 1, 3), hidden_size=16, top_k=2, scope="site", depth=3, size=5, again=True),
    XLoRA(ranks=(2, 3), hidden_size=16, depth=2, size=4, softmax=False),
)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Expert by expert, the weight multiplying the expert's input; p["h"] is the base's last hidden state."""
    g = p["h"]
    for k in range(1, method.depth):
        g = (g @ p[f"V{k}"].mT + p[f"c{k}"]).clamp(min=0)
    w = g @ p["V"].mT + p["c"]
    if method.softmax:
        e = torch.exp(w / method.tau)
        w = e / e.sum(-1, keepdim=True)
    if method.top_k:
        w = torch.where(w >= w.sort(-1, descending=True).values[..., method.top_k - 1, None], w, 0.0)
    if method.again:
        e = torch.where(w != 0, torch.exp(w), 0.0)
        w = e / e.sum(-1, keepdim=True)
    y, start = x @ W.mT, 0
    y = y if b is None else y + b
    for k, r in enumerate(method.ranks):
        A, B = p["A"][start : start + r], p["B"][:, start : start + r]
        y = y + method.gamma * ((w[..., k, None] * x) @ A.mT) @ B.mT
        start += r
    return y
