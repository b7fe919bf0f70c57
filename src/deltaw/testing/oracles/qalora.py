"""QA-LoRA: an average pooling, as in the authors' code, and PEFT's variant (for GPTQ layers) called on a plain layer.

PEFT multiplies the means by the number of groups, so its scale is divided by that here: what is compared is the rest."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.qalora import QALoRA

METHODS = (QALoRA(r=3, alpha=6.0, group_size=2), QALoRA(r=2, group_size=4))
METHOD = METHODS[0]


def closed(method: QALoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    pooled = F.avg_pool1d(x.flatten(0, -2), method.group_size).view(*x.shape[:-1], -1)
    return F.linear(x, W, b) + method.alpha / method.r * pooled @ p["A"].mT @ p["B"].mT


def peft(method: QALoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig
    from peft.tuners.lora.variants import QALoraLinearVariant

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        QALoraLinearVariant.init(layer, "default", SimpleNamespace(qalora_group_size=method.group_size))
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for theirs, name in ((A, "A"), (B, "B")):
            theirs.data.copy_(p[name])
        layer.scaling["default"] = method.scale * method.group_size / layer.in_features
        layer.forward = lambda x: QALoraLinearVariant.forward(layer, "default", x, layer.base_layer(x))
        return {"A": lambda: A.grad, "B": lambda: B.grad}

    return LoraConfig(r=method.r, lora_alpha=method.alpha, target_modules=["lin"]), put
