"""The same language model at another width, with fresh weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ..errors import SpecError, need

WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "d_ff")
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head")


def at_width(config: Any, width: int) -> Any:
    """A copy of a transformers configuration whose hidden state has `width` numbers.

    Hidden layers and the numbers of heads grow with it, at the head size there is; where the heads do not come out whole, their size
    grows instead. Depth, vocabulary and everything else stay.
    """
    word = next((w for w in WIDTHS[:3] if isinstance(getattr(config, w, None), int)), None)
    if word is None:
        raise SpecError(f"{type(config).__name__} names no width ({', '.join(WIDTHS[:3])})")
    now, out = getattr(config, word), copy.deepcopy(config)

    def times(name: str) -> int:
        found = int(getattr(config, name)) * width
        if found % now:
            raise SpecError(f"{name} = {getattr(config, name)} at width {now} is no whole number at width {width}")
        return found // now

    for name in WIDTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(out, name, times(name))
    heads = [h for h in HEADS if isinstance(getattr(config, h, None), int)]
    if all(getattr(config, h) * width % now == 0 for h in heads):
        for h in heads:
            setattr(out, h, times(h))
    elif isinstance(getattr(config, "head_dim", None), int):
        out.head_dim = times("head_dim")
    return out


def tiny_config(vocabulary: int = 256, width: int = 64, layers: int = 2) -> Any:
    """A Llama of heads of 16 numbers for bytes, with a head of its own."""
    transformers = need("transformers", extra="train")
    return transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=width // 16,
        num_key_value_heads=width // 16, head_dim=16, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def drawn(config: Any) -> nn.Module:
    """A language model with the weights that torch's generator draws, in training mode."""
    transformers = need("transformers", extra="train")
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.train()
