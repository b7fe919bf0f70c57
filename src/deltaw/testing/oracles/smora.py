"""SMoRA: token by token, term by term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.route.smora import SMoRA

METHODS = [SMoRA(r=4, k=2, alpha=6.0), SMoRA(r=6, k=4, alpha=6.0, q=2)]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ W.mT if b is None else x @ W.mT + b
    rows = [t for t in x.reshape(-1, x.shape[-1])]
    out = []
    for row in rows:
        share = [1 / (1 + torch.exp(-(p["R"][i // method.q] @ row))) + p["d"][i] for i in range(method.r)]
        best = sorted(range(method.r), key=lambda i: -float(share[i].detach()))[: method.k]
        total = sum(share[i] for i in best)
        out.append(sum(method.alpha * share[i] / total * (p["A"][i] @ row) * p["B"][:, i] for i in best))
    return y + torch.stack(out).view(y.shape)
