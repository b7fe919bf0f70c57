"""ResLoRA at one layer alone. (The chain of layers: tests/test_methods_factored.py. PEFT 0.21 does not have it.)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.reslora import ResLoRA

METHODS = (ResLoRA(r=3, alpha=6.0), ResLoRA(r=2, pre_num=0))


def closed(method: ResLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W, b) + method.alpha / method.r * (x @ p["A0"].T @ p["B0"].T)
