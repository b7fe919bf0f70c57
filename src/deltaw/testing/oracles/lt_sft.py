"""LT-SFT: the closed form of its first phase, a dense change (HF PEFT has no such method)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ...methods.structure.lt_sft import LTSFT

METHOD = LTSFT()


def closed(method: LTSFT, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W + p["v"].reshape(W.shape), b)
