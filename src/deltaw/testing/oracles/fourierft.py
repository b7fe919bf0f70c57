"""FourierFT: the double sum of cosines, and HF PEFT with the positions it draws itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.fourierft import FourierFT

METHOD = FourierFT(k=200, s=20.0)


def closed(method: FourierFT, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    i, j = p["I"] // n, p["I"] % n
    rows = torch.arange(m, dtype=W.dtype)[:, None, None] * i / m
    columns = torch.arange(n, dtype=W.dtype)[None, :, None] * j / n
    change = (torch.cos(2 * math.pi * (rows + columns)) * p["c"]).sum(-1) / (m * n)
    return F.linear(x, W + method.s * change, b)


def peft(method: FourierFT) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import FourierFTConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        i, j = layer.indices["default"]
        assert torch.equal(i * layer.in_features + j, p["I"]), "other positions than PEFT's"
        c = layer.fourierft_spectrum["default"]
        c.data.copy_(p["c"])
        return {"c": lambda: c.grad}

    config = FourierFTConfig(
        n_frequency=method.k, scaling=method.s, random_loc_seed=method.seed, target_modules=["lin"]
    )
    return config, put
