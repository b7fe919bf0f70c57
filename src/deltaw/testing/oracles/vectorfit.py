"""VectorFit: the closed form from the decomposition alone, without W (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.vectorfit import VectorFit

METHOD = VectorFit()


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    sigma = torch.linalg.svdvals(W) + p["dsigma"]
    y = x @ p["Vt"].mT @ torch.diag(sigma) @ p["U"].mT
    return y if b is None else y + (b + p["db"])
