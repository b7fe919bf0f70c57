"""QR-LoRA: the closed form, with the frames checked against what defines a pivoted QR (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.qr_lora import QRLoRA

METHODS = (QRLoRA(r=4), QRLoRA(r=16))


def pivots(W: Tensor, r: int) -> list[int]:
    """The columns taken: each time the one farthest from the span of those before."""
    found: list[int] = []
    for _ in range(r):
        span = torch.linalg.qr(W[:, found]).Q
        found.append(int((W - span @ (span.mT @ W)).square().sum(0).argmax()))
    return found


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    columns = W[:, pivots(W, method.r)]
    Q, T = torch.linalg.qr(columns)
    Q = Q * T.diagonal().sign()
    y = x @ W.mT + ((x @ (W.mT @ Q)) * p["lambda"]) @ Q.mT
    return y if b is None else y + b
