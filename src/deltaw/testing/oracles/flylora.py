"""FlyLoRA: token by token, term by term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.route.flylora import FlyLoRA

METHODS = [FlyLoRA(r=4, k=2, alpha=6.0), FlyLoRA(r=4, k=4), FlyLoRA(r=4, k=2, select="signed")]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ W.mT if b is None else x @ W.mT + b
    out = []
    for row in x.reshape(-1, x.shape[-1]):
        z = [p["A"][i] @ row for i in range(method.r)]
        score = [float((z[i] + p["d"][i]).detach()) for i in range(method.r)]
        best = sorted(range(method.r), key=lambda i: -abs(score[i]) if method.select == "abs" else -score[i])[: method.k]
        out.append(sum(method.alpha / method.r * z[i] * p["B"][:, i] for i in best))
    return y + torch.stack(out).view(y.shape)
