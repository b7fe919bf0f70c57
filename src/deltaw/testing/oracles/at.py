"""At: the closed forms of what it holds, written out at the picked tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.stream.direft import DiReFT
from ...methods.structure.lora import LoRA
from ...methods.wrap.at import At

METHODS = (At(DiReFT(r=4), positions="f1+l1"), At(LoRA(r=4), positions="f2"), At(LoRA(r=4), positions="after 1 2"))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Token by token. The rules are counted here again: of 5 tokens the first 2, the first and the last, or 1 to 4."""
    rule = {"f1+l1": {0, 4}, "f2": {0, 1}, "after 1 2": {1, 2, 3, 4}}[method.positions]
    y = x @ W.mT if b is None else x @ W.mT + b
    rows = []
    for t in range(x.shape[1]):
        if t not in rule:
            rows.append(y[:, t])
        elif "W1" in p:
            rows.append(x[:, t] + (x[:, t] @ p["W1"].mT + p["b"]) @ p["W2"])
        else:
            rows.append(y[:, t] + method.inner.alpha / method.inner.r * x[:, t] @ p["A"].mT @ p["B"].mT)
    return torch.stack(rows, 1)
