"""AirLLM in evaluation: term by term."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.structure.airllm import AirLLM

METHOD = AirLLM(r=3, alpha=6.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ W.mT if b is None else x @ W.mT + b
    for k in range(method.r):
        y = y + method.alpha / method.r * p["E"][k] * (x @ p["Q"][k])[..., None] * p["P"][:, k]
    return y
