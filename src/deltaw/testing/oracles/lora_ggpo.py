"""LoRA-GGPO in evaluation mode: LoRA. (The noise of its training mode: tests/test_methods_ggpo.py. PEFT 0.21 does not have it.)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.lora import LoRA
from ...methods.wrap.lora_ggpo import LoRAGGPO

METHOD = LoRAGGPO(LoRA(r=3, alpha=6.0))


def closed(method: LoRAGGPO, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    assert isinstance(method.inner, LoRA)
    return F.linear(x, W, b) + method.inner.alpha / method.inner.r * (x @ p["A"].T @ p["B"].T)
