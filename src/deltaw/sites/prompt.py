"""What a model is called with, and what is remembered of a key/value cache from one pass to the next."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import SpecError

MEMORY = "_deltaw"  # an attribute of the cache, so that a copy of the cache remembers as well


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The token ids or embeddings of a pass."""
    named = [kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    for x in [*named, *args, *kwargs.values()]:
        if isinstance(x, Tensor) and x.dim() > 0:
            return x
    raise SpecError("the model was called without a tensor")


def cached(cache: Any) -> int:
    """How many tokens a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def memory(cache: Any) -> dict[str, Any]:
    """What was noted about a cache that holds something; empty for an unknown one."""
    found: dict[str, Any] = getattr(cache, MEMORY, None) or {}
    return found if cache is not None and cached(cache) else {}


def note(cache: Any, **facts: Any) -> None:
    if cache is not None and facts:
        setattr(cache, MEMORY, {**(getattr(cache, MEMORY, None) or {}), **facts})


def cache_of(out: Any) -> Any:
    """The cache in what a model gives back."""
    return None if isinstance(out, Tensor) else getattr(out, "past_key_values", None)
