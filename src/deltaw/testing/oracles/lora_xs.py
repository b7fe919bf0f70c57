"""LoRA-XS: the closed form (PEFT 0.21 does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.lora_xs import LoRAXS

METHOD = LoRAXS(r=4, alpha=6.0)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """W' = W + alpha / r U_r R S_r V_rᵀ; the factors are checked against W, since signs of singular vectors are free."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    r = method.r
    best = (U[:, :r] * S[:r]) @ Vh[:r]
    torch.testing.assert_close(p["B"].to(W.dtype) @ p["A"].to(W.dtype), best, rtol=1e-5, atol=1e-5)
    y = x @ (W + method.alpha / r * p["B"] @ p["R"] @ p["A"]).mT
    return y if b is None else y + b
