"""PRILoRA in evaluation is LoRA; its pruning has a closed form of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.structure.prilora import PRILoRA

METHOD = PRILoRA(r=3, alpha=6.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ W.mT if b is None else x @ W.mT + b
    return y + method.alpha / method.r * (x @ p["A"].mT @ p["B"].mT)
