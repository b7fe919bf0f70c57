"""aLoRA: the closed form. HF PEFT's needs a whole language model: see tests/test_methods_prompts.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.alora import ALoRA

IN_PEFT = True
METHODS = (ALoRA(r=4, alpha=6.0, invocation=(1, 2)), ALoRA(r=4, alpha=4.0), ALoRA(r=4, alpha=4.0, invocation=(0,)))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Token by token; in the tests token t has the id t."""
    start = min(method.invocation, default=0)
    y = x @ W.mT if b is None else x @ W.mT + b
    moved = y + method.alpha / method.r * (x @ p["A"].mT) @ p["B"].mT
    return torch.cat([y[:, :start], moved[:, start:]], 1)
