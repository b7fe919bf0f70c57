"""Shadow: the closed form over a tiny model of two blocks. HF PEFT's needs a language model: see tests/test_peft_shadow.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.stream.shadow import Shadow

IN_PEFT = True
METHODS = (Shadow(r=3), Shadow(r=2, alpha=0.7, dropout=0.0, layers=2, width=5))


def closed(method: Any, blocks: Any, p: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """The network block by block, then the two states side by side."""
    def net(k: str, v: Tensor) -> Tensor:
        hidden = v @ last[k + "1"].mT + last[k + "a"]
        return (0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))) @ last[k + "2"].mT + last[k + "b"]

    s = x
    for j in range(method.layers):
        sq, up = p[0][f"net.{j}.sq.weight"], p[0][f"net.{j}.up.weight"]
        u = s @ up.mT
        d = s.shape[-1]
        s = s + torch.tanh(s @ sq.mT + p[0][f"net.{j}.sq.bias"]) * torch.tanh(u[..., :d]) + 0.5 * u[..., -d:]
    h = x
    for k, block in enumerate(blocks):
        last = p[k]
        h = block(h + method.alpha * ((h - s) @ last["down"].mT) @ last["up"].mT)
        if k + 1 < len(blocks):
            g = 1 / (1 + torch.exp(-net("G", h)))
            s = (1 - g) * s + g * net("T", h)
    return h
