"""RoseLoRA between its steps: LoRA. (Its rule: tests/test_methods_factored.py. PEFT 0.21 does not have it.)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.roselora import RoseLoRA

METHOD = RoseLoRA(r=3, alpha=6.0, kappa=0.3)


def closed(method: RoseLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, W, b) + method.alpha / method.r * (x @ p["A"].T @ p["B"].T)
