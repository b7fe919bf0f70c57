"""PEANuT: the network on the rows of Wᵀ, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.peanut import PEANuT

METHODS = (PEANuT(r=4), PEANuT(r=5, depth=2, s=0.5))
METHOD = METHODS[0]


def closed(method: PEANuT, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    z = [(W.mT @ p["A"].mT).clamp(min=0)]
    for i in range(method.depth):
        z.append((z[-1] @ p["E"][i].mT).clamp(min=0))
    out = z[-1]
    for i in range(method.depth):
        out = (out @ p["D"][i].mT).clamp(min=0) + z[method.depth - 1 - i]
    return F.linear(x, W + method.s * (out @ p["B"].mT).mT, b)


def peft(method: PEANuT) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    import torch
    from peft import PeanutConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.peanut_A["default"].weight, layer.peanut_B["default"].weight
        A.data.copy_(p["A"])
        B.data.copy_(p["B"])
        out: dict[str, Callable[[], Tensor]] = {"A": lambda: A.grad, "B": lambda: B.grad}
        for word, parts in (("E", layer.peanut_encoders["default"]), ("D", layer.peanut_decoders["default"])):
            for i, part in enumerate(parts):
                part.weight.data.copy_(p[word][i])
            out[word] = lambda parts=parts: torch.stack([part.weight.grad for part in parts])
        return out

    return PeanutConfig(r=method.r, depth=method.depth, scaling=method.s, target_modules=["lin"]), put
