"""WaveFT: the transform written out block by block, and HF PEFT with the positions it draws itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.waveft import WaveFT

METHOD = WaveFT(k=150, s=5.0)


def closed(method: WaveFT, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Every 2 x 2 patch of the update is (a + h + v + d, …) / 2 of the four quadrants; even sizes."""
    S = torch.zeros_like(W).reshape(-1).scatter(0, p["I"], p["c"]).reshape(W.shape)
    (a, right), (left, d) = (half.chunk(2, 1) for half in S.chunk(2, 0))
    top = torch.stack((a + right + left + d, a + right - left - d), 2)
    bottom = torch.stack((a - right + left - d, a - right - left + d), 2)
    change = torch.stack((top, bottom), 1).reshape(W.shape) / 2
    return F.linear(x, W + method.s * change, b)


def peft(method: WaveFT) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import WaveFTConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        i, j = layer.waveft_indices["default"]
        assert torch.equal(i * layer.in_features + j, p["I"]), "other positions than PEFT's"
        c = layer.waveft_spectrum["default"]
        c.data.copy_(p["c"])
        return {"c": lambda: c.grad}

    config = WaveFTConfig(n_frequency=method.k, scaling=method.s, random_loc_seed=method.seed, target_modules=["lin"])
    return config, put
