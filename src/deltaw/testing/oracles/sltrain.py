"""SLTrain: the dense matrix entry by entry (PEFT does not have it). Autograd's gradients are the paper's gathered ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ...methods.structure.sltrain import SLTrain

METHODS = (SLTrain(r=3, alpha=6.0, delta=0.1), SLTrain(r=5, alpha=5.0, delta=0.5))


def closed(method: SLTrain, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    places = p["I"].tolist()
    assert places == sorted(set(places)) and len(places) == int(method.delta * m * n) and p["I"].dtype == torch.int32
    sparse = torch.zeros_like(W)
    for k, place in enumerate(places):
        here = torch.zeros_like(W)
        here[place // n, place % n] = 1.0
        sparse = sparse + p["v"][k] * here
    y = x @ (method.alpha / method.r * p["B"] @ p["A"] + sparse).mT
    return y if b is None else y + b
