"""Multitask prompt tuning: the closed form. HF PEFT's needs a whole language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.prefix.mpt import MPT

IN_PEFT = True
METHODS = (MPT(v=3), MPT(v=2, tasks=3, rho=2, begin="normal"))


def closed(method: Any, table: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of task 0, as a sum over the ranks."""
    factor = sum(p["u"][0][:, k, None] * p["w"][0][k] for k in range(method.rho))
    return {"tokens": p["P"] * factor}
