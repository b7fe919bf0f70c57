"""Prompt tuning: the closed form. HF PEFT's needs a whole language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.prefix.prompt_tuning import PromptTuning

IN_PEFT = True
METHODS = (PromptTuning(v=3), PromptTuning(v=5, text=(4, 2)), PromptTuning(v=2, begin="normal"))


def closed(method: Any, table: Tensor, p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"tokens": p["P"]}
