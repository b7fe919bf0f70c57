"""P-tuning: the closed form. HF PEFT's needs a whole language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.prefix.p_tuning import PTuning

IN_PEFT = True
METHODS = (PTuning(v=3, h=5), PTuning(v=2))


def closed(method: Any, table: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token by token."""
    out = []
    for h in p["H"]:
        for k in "12":
            h = (p["W" + k] @ h + p["b" + k]).clamp_min(0)
        out.append(p["W3"] @ h + p["b3"])
    return {"tokens": torch.stack(out)}
