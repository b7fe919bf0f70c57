"""Cartridge: the closed form. HF PEFT's needs a whole language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.prefix.cartridge import Cartridge

IN_PEFT = True
METHODS = (Cartridge(v=4), Cartridge(v=3, f=0), Cartridge(v=5, f=2))


def closed(method: Any, table: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = [*p.get("Z0", []), *p["Z"]]
    return {"kv": torch.stack(rows)}
