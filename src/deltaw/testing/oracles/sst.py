"""SST: the sum of its rank-one parts, with the enhanced gradients written from the gradient of the dense weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.sst import SST

METHODS = (SST(r=3, every=4, warmup=2), SST(r=16, every=5, warmup=0))


def whole(U: Tensor, V: Tensor, u: Tensor, v: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    where = chosen.tolist()
    left = torch.stack([u[:, where.index(i)] if i in where else U[:, i] for i in range(U.shape[1])], 1)
    right = torch.stack([v[where.index(i)] if i in where else V[i] for i in range(len(V))])
    return left, right


class Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, S: Tensor, u: Tensor, v: Tensor, U: Tensor, V: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(x, S, u, v, U, V, chosen)
        left, right = whole(U, V, u, v, chosen)
        return x @ (left @ torch.diag(S) @ right).mT

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, S, u, v, U, V, chosen = ctx.saved_tensors
        left, right = whole(U, V, u, v, chosen)
        G = torch.einsum("...m,...n->mn", g, x)
        dS = torch.stack([left[:, i] @ G @ right[i] for i in range(len(S))])
        du = torch.stack([G @ v[k] for k in range(len(v))], 1)
        dv = torch.stack([u[:, k] @ G for k in range(len(v))])
        return g @ (left @ torch.diag(S) @ right), dS, du, dv, None, None, None


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    parts = [p[k] for k in ("S", "u", "v", "U", "V", "I")]
    y: Tensor = Layer.apply(x, *parts)  # type: ignore[no-untyped-call]
    return y if b is None else y + b
