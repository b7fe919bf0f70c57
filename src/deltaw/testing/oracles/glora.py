"""GLoRA: the two lines of the paper, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...methods.structure.glora import GLoRA

METHODS = (
    GLoRA(r=3),
    GLoRA(r=3, C="vector", D_E="vector"),
    GLoRA(A_B="vector", C="none", D_E="vector"),
    GLoRA(r=2, A_B="constant", D_E="none"),
)
METHOD = METHODS[0]


def term(p: dict[str, Tensor], word: str) -> Tensor | float:
    return p[word] if word in p else p[f"{word}_d"] @ p[f"{word}_u"] if f"{word}_d" in p else 0.0


def closed(method: GLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    A, B, C, D, E = (term(p, word) for word in "ABCDE")
    y = x @ (W + W * A + B).mT
    if b is None:
        return y
    return y + b + b * D + E + (0.0 if isinstance(C, float) else (W @ C)[:, 0])


def peft(method: GLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import GloraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        gradients: dict[str, Callable[[], Tensor]] = {}
        for word, t in p.items():
            path = getattr(layer, f"glora_{word[0]}")["default"]
            theirs = path.X if len(word) == 1 else path.Xd if word.endswith("d") else path.Xu
            theirs.data.copy_(t.reshape(theirs.shape))
            gradients[word] = lambda own=theirs, t=t: own.grad.reshape(t.shape)
        return gradients

    config = GloraConfig(
        r=method.r, config_A_B=method.A_B, config_C=method.C, config_D_E=method.D_E, target_modules=["lin"]
    )
    return config, put
