"""LoCA: dense cosine matrices, the finite differences written out (PEFT 0.21 does not have it)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.loca import LoCA

METHOD = LoCA(k=120, alpha=0.7)


def cosines(size: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float64)
    C = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * math.sqrt(2 / size)
    return torch.cat((C[:1] / math.sqrt(2), C[1:]))


class Dense(torch.autograd.Function):
    """alpha C_mᵀ S C_n, with the central differences of the places taken from the whole gradient matrix."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, l: Tensor, m: int, n: int, alpha: float) -> Tensor:  # noqa: E741
        spot = (l.clamp(0, 0.999) * torch.tensor([[m - 1.0], [n - 1.0]], dtype=l.dtype)).round().long()
        ctx.save_for_backward(a, l, spot)
        ctx.sizes = m, n, alpha
        S = torch.zeros(m, n, dtype=a.dtype).index_put((spot[0], spot[1]), a, accumulate=True)
        return alpha * cosines(m).mT @ S @ cosines(n)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Any:  # type: ignore[override]
        a, l, (i, j) = ctx.saved_tensors  # noqa: E741
        m, n, alpha = ctx.sizes
        K = alpha * cosines(m) @ G @ cosines(n).mT
        wide = F.pad(K[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        steps = torch.stack((wide[i + 2, j + 1] - wide[i, j + 1], wide[i + 1, j + 2] - wide[i + 1, j]))
        return K[i, j], 0.5 * a * steps * ((l >= 0) & (l <= 0.999)), None, None, None


def closed(method: LoCA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    m, n = W.shape
    return F.linear(x, W + Dense.apply(p["a"], p["l"], m, n, method.alpha), b)
