"""CPT: the closed form. HF PEFT's needs a whole language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.prefix.cpt import CPT

IN_PEFT = True
# bounds wide enough for the laws of learning: the usual ones are 0.009 at this width
METHODS = (CPT(ids=(3, 1, 4), eps_format=20.0), CPT(ids=(3, 1, 4, 1, 5), types=(1, 2, 3, 4, 6), eps=20.0, eps_format=8.0))


def closed(method: Any, table: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Answers and tokens without a type stay where the table has them."""
    types = method.types or (1,) * len(method.ids)
    rows = [table[i] + (d if t % 4 else 0 * d) for i, t, d in zip(method.ids, types, p["D"])]
    return {"tokens": torch.stack(rows)}
