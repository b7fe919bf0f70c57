"""C3A: the block-circulant matrix entry by entry, and HF PEFT's matrix.

PEFT 0.21.2's own backward gives the input the gradient of the reversed kernels (its forward and its gradient of the
kernels are right), so the judge is PEFT's matrix under torch's differentiation; PEFT's own forward is compared in put()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.c3a import C3A

METHODS = (C3A(b=4), C3A(b=8, init="kaiming_uniform"))
METHOD = METHODS[0]


def closed(method: C3A, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    w, s = p["w"], method.b
    rows = [torch.stack([w[i // s, j // s, (j % s - i % s) % s] for j in range(n)]) for i in range(m)]
    return F.linear(x, W + torch.stack(rows) / n, b)


def peft(method: C3A) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import C3AConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        w = layer.c3a_kernel["default"]
        w.data.copy_(p["w"])
        theirs = type(layer).forward

        def forward(x: Tensor) -> Tensor:
            y = layer.base_layer(x) + F.linear(x, layer.get_delta_weight("default"))
            torch.testing.assert_close(theirs(layer, x), y, rtol=1e-5, atol=1e-5)
            return y

        layer.forward = forward
        return {"w": lambda: w.grad}

    return C3AConfig(block_size=method.b, init_weights=method.init, target_modules=["lin"]), put
