"""What is adapted: a language model's decoder, or one linear layer, with an input and the gradient of its output.

Every candidate is a twin: a model of its own whose frozen weights are the same memory. The loss is sum(h * g) over the
decoder's output h with fixed random g, so that no vocabulary hides or dilutes a ratio, and the input requires a
gradient, so that every candidate goes back through the whole model, as training an earlier layer would.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError, need
from ..train import load_base
from .setting import Setting, sizes


class Layer(nn.Module):
    """One linear layer, OUT x IN, as a model."""

    def __init__(self, m: int, n: int, dtype: torch.dtype):
        super().__init__()
        self.proj = nn.Linear(n, m, bias=False, dtype=dtype)
        with torch.no_grad():
            self.proj.weight.normal_(0, n**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


@dataclass
class Subject:
    """A frozen model, x (rows, tokens, n) as its input, and g, the gradient of the loss at its output."""

    base: nn.Module
    x: Tensor
    g: Tensor

    def twin(self, own: bool = False, trained: bool = False) -> Any:
        """A model with the same frozen weights, in the same memory; own: with copies of its own; trained: that learn."""
        memo: dict[int, Any] = {}
        for p in self.base.parameters():
            memo[id(p)] = nn.Parameter(p.detach().clone() if own else p.detach(), requires_grad=trained)
        model: Any = copy.deepcopy(self.base, memo).train()
        if trained and not isinstance(model, Layer):
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):  # no part of the decoder
                for p in () if table is None else table.parameters():
                    p.requires_grad_(False)
        return model


def hidden(model: Any, x: Tensor) -> Tensor:
    """The decoder's output for given input embeddings; a layer's output."""
    if isinstance(model, Layer):
        return model(x)  # type: ignore[no-any-return]
    return model.get_decoder()(inputs_embeds=x, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def load(setting: Setting, dtype: str) -> Subject:
    kind = getattr(torch, dtype)
    random = torch.Generator().manual_seed(setting.seed)
    if setting.layer:
        m, n = sizes(setting.layer, "--layer", "OUTxIN")
        torch.manual_seed(setting.seed)
        base: Any = Layer(m, n, kind)
    else:
        base, n = model_of(setting.model, dtype), 0
        if not hasattr(base, "get_decoder"):
            raise SpecError(f"{setting.model}: a causal language model was expected; found {type(base).__name__}")
        m = n = base.config.hidden_size
    for p in base.parameters():
        p.requires_grad_(False)
    rows, tokens = setting.rows_tokens
    x = torch.randn(rows, tokens, n, generator=random).to(kind)
    g = (torch.randn(rows, tokens, m, generator=random) / (rows * tokens)).to(kind)
    return Subject(base, x, g)


def model_of(spec: str, dtype: str) -> Any:
    """A base model; "tiny" is one of Llama's shape with random weights, made here."""
    if spec != "tiny":
        return load_base(spec, dtype)[0]
    transformers = need("transformers", extra="train")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
