"""LLaMA-Adapter: the closed form at one attention layer. HF PEFT's needs a language model: see tests/test_peft_prompts.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.prefix.adaption_prompt import AdaptionPrompt

IN_PEFT = True
METHODS = (AdaptionPrompt(v=3), AdaptionPrompt(v=1))


def closed(method: Any, layer: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Head by head; two heads of queries on one of keys and values."""
    def linear(f: Any, x: Tensor) -> Tensor:
        return x @ f.weight.mT + f.bias

    K, V, e = linear(layer.k_proj, p["P"]), linear(layer.v_proj, p["P"]), layer.head_dim
    heads = []
    for q in linear(layer.q_proj, x).split(e, -1):
        s = torch.exp(q @ K.mT / e**0.5)
        heads.append(p["g"] * (s / s.sum(-1, keepdim=True)) @ V)
    return torch.cat(heads, -1) @ layer.o_proj.weight.mT
