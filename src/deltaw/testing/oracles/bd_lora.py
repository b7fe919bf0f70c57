"""BD-LoRA: the blocks on the diagonal, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.bd_lora import BDLoRA

METHODS = (BDLoRA(r=4, alpha=6.0, nblocks=2), BDLoRA(r=4, nblocks=4, side="A"))
METHOD = METHODS[0]


def closed(method: BDLoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    A, B = (torch.block_diag(*t) if t.dim() == 3 else t for t in (p["A"], p["B"]))
    return F.linear(x, W + method.alpha / method.r * B @ A, b)


def peft(method: BDLoRA) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LoraConfig
    from peft.tuners.lora.config import BdLoraConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for theirs, name in ((A, "A"), (B, "B")):
            theirs.data.copy_(p[name].reshape(theirs.shape))
        return {"A": lambda: A.grad.reshape(p["A"].shape), "B": lambda: B.grad.reshape(p["B"].shape)}

    where = {"target_modules_bd_a" if method.side == "A" else "target_modules_bd_b": ["lin"]}
    blocks = BdLoraConfig(nblocks=method.nblocks, **where)
    return LoraConfig(r=method.r, lora_alpha=method.alpha, use_bdlora=blocks, target_modules=["lin"]), put
