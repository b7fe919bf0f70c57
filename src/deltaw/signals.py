"""Values of the current pass that formulas may read (`Signal("hidden")`): each has one producer, run before the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError

Producer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor]
PRODUCERS: dict[str, Producer] = {}


def produces(name: str) -> Callable[[Producer], Producer]:
    def register(f: Producer) -> Producer:
        PRODUCERS[name] = f
        return f

    return register


@produces("hidden")
def hidden(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The last hidden state (batch, tokens, d) of the base alone, from a first pass without gradient."""
    cache = kwargs.get("past_key_values")
    if cache is not None and getattr(cache, "get_seq_length", lambda: 1)() > 0:
        raise SpecError("this adapter looks at the whole input in a first pass; call the model with use_cache=False")
    plain = {k: v for k, v in kwargs.items() if k not in ("labels", "past_key_values")}
    plain |= {"output_hidden_states": True, "use_cache": False, "return_dict": True}
    with torch.no_grad():
        out = model.forward(*args, **plain)
    states = getattr(out, "hidden_states", None)
    if not states:
        raise SpecError(
            f"{type(model).__name__} gives no hidden states; the signal 'hidden' needs a transformers model"
        )
    return states[-1]  # type: ignore[no-any-return]
