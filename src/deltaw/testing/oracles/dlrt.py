"""DLRT: U S Vᵀ with the gradients of the integrator's substeps, written from the gradient of the dense weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.dlrt import DLRT

METHODS = (DLRT(r=3, r_max=4), DLRT(r=5, r_max=8))


class Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        ctx.save_for_backward(x, U, S, V)
        return x @ (U @ S @ V.mT).mT

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, U, S, V = ctx.saved_tensors
        G = torch.einsum("...m,...n->mn", g, x)
        return g @ (U @ S @ V.mT), G @ V, U.mT @ G @ V, G.mT @ U


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y: Tensor = Layer.apply(x, p["U"], p["S"], p["V"])  # type: ignore[no-untyped-call]
    return y if b is None else y + b
