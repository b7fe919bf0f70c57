"""In front of a language model: soft tokens at the embeddings, keys and values in every layer's cache.

The site is the backbone, the module that takes ids or embeddings and gives hidden states. What a head or a loss sees has
one state per real token, as without the prompt: the states of soft tokens are cut off behind the backbone. Positions of
real tokens move back by the length of the prompt, in later passes over the same cache as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingExtra, NotLinear, NotMergeable, SpecError, TargetError, need
from ..ops import Affine, Map
from .base import Site
from .prompt import cache_of, cached, first_tensor, memory, note


class Prefix(Map):
    """Not a map of a vector: what stands in front of the tokens. tokens (v, d), soft tokens; kv (u, m), keys and values of
    u places, m = layers x (key, value) x heads x size in this order; either with an axis for rows in front, and a mask
    (rows, ...) of those that a row really has."""

    def __init__(
        self, tokens: Tensor | None = None, kv: Tensor | None = None, has: Tensor | None = None, holds: Tensor | None = None
    ):
        self.tokens, self.kv, self.has, self.holds = tokens, kv, has, holds

    @property
    def sizes(self) -> tuple[int, int]:
        """(places in the cache, soft tokens)."""
        return (0 if self.kv is None else self.kv.shape[-2]), (0 if self.tokens is None else self.tokens.shape[-2])

    def __call__(self, x: Tensor) -> Tensor:
        raise NotLinear("a prompt is no map of a vector")


_whole = 0


class uncut:
    """`with uncut():` hidden states and logits of soft tokens stay in the output."""

    def __enter__(self) -> None:
        global _whole
        _whole += 1

    def __exit__(self, *_: object) -> None:
        global _whole
        _whole -= 1


def behind(parts: list[Tensor]) -> Tensor | None:
    """One prompt behind the other."""
    if len(parts) < 2:
        return parts[0] if parts else None
    rows = max(t.shape[0] if t.dim() == 3 else 0 for t in parts)
    return torch.cat([t.expand(rows, *t.shape[-2:]) if rows else t for t in parts], -2)


def backbone(model: nn.Module) -> str:
    """The innermost module that takes embeddings and holds the blocks."""
    from .find import blocks, is_ours

    inside = next(iter(blocks(model)), "")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not inside:
        raise TargetError(f"{type(model).__name__} is no decoder with repeated blocks, so a prompt has no place to stand")
    found = ""
    for name, module in model.named_modules():
        if name and not is_ours(name) and inside.startswith(f"{name}.") and not isinstance(module, nn.ModuleList):
            if {"inputs_embeds", "attention_mask"} <= set(inspect.signature(type(module).forward).parameters):
                found = name
    if not found:
        raise TargetError(
            f"{type(model).__name__} holds no module that takes inputs_embeds and attention_mask; a prompt needs a "
            "transformers language model (the one with its head, not its backbone alone)"
        )
    return found


class PrefixSite(Site):
    """m = 2 · layers · heads · size numbers of keys and values per place, n = d numbers per soft token. Its leaf is the
    embedding table, from which a prompt may start."""

    kind = "prefix"
    pointwise = False
    gathers = True

    def __init__(self, name: str, module: nn.Module, model: nn.Module):
        super().__init__(name, module)
        from .find import blocks, leaf_site

        config = getattr(module, "config", None) or getattr(model, "config", None)
        get = getattr(module, "get_input_embeddings", None)
        table = get() if callable(get) else next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
        found = None if table is None else leaf_site(f"{name}.embeddings", table)
        if table is None or found is None or found.kind != "embedding":
            raise TargetError(
                f"'{name}' is a {type(module).__name__} without an embedding table; a prompt goes in front of a backbone"
            )
        self.table, self.base = table, found.leaf()
        width = found.shape[0]
        queries = _number(config, "num_attention_heads", "n_head") or 1
        self.heads = _number(config, "num_key_value_heads") or queries
        self.size = _number(config, "head_dim") or width // queries
        self.layers = _number(config, "num_hidden_layers", "n_layer") or len(blocks(model))
        self.empty: Any = None  # a class of caches, looked up here because compiled code cannot import
        try:
            self.empty = need("transformers", "train").DynamicCache
        except MissingExtra:
            pass
        self.names = list(inspect.signature(type(module).forward).parameters)[1:]

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.layers * self.heads * self.size, int(self.base.op.shape[0])

    def leaf(self) -> Affine:
        return self.base

    def merged(self, L: Map) -> dict[str, Tensor]:
        raise NotMergeable(f"{self.name}: a prompt is part of the input, so no weight equals it; keep the adapter separate")

    # ---- several prompts

    def joined(self, maps: list[Map], weights: list[float | Tensor]) -> Prefix:
        """Several live prompts stand one behind the other; one of weight 0 is left out."""
        if any(not isinstance(w, float) or w not in (0.0, 1.0) for w in weights):
            raise SpecError(f"{self.name}: a prompt is there or not, so its weight is 1 or 0; found {weights}")
        live = [L for L, w in zip(maps, weights) if w]
        return Prefix(
            behind([L.tokens for L in live if L.tokens is not None]),  # type: ignore[attr-defined]
            behind([L.kv for L in live if L.kv is not None]),  # type: ignore[attr-defined]
        )

    def by_row(self, maps: dict[int, Map], which: Tensor) -> Prefix:
        """Row i gets maps[which[i]], or nothing: shorter prompts are filled up on the left by places nobody looks at."""
        found: list[Tensor | None] = []
        for word in ("tokens", "kv"):
            parts = {k: t for k, L in maps.items() if (t := getattr(L, word)) is not None}
            if not parts:
                found += [None, None]
                continue
            v, d = max(t.shape[-2] for t in parts.values()), next(iter(parts.values())).shape[-1]
            like = next(iter(parts.values()))
            rows = [like.new_zeros(v, d)] * len(which)
            has = torch.zeros(len(which), v, dtype=torch.bool, device=like.device)
            for i, k in enumerate(which.tolist()):
                if k in parts:
                    own = parts[k] if parts[k].dim() == 2 else parts[k][min(i, len(parts[k]) - 1)]
                    rows[i] = nn.functional.pad(own, (0, 0, v - len(own), 0))
                    has[i, v - len(own) :] = True
            found += [torch.stack(rows), has]
        return Prefix(found[0], found[2], found[1], found[3])

    # ---- one pass

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(L, Prefix)
        kw = {**dict(zip(self.names, args)), **kwargs}
        u, v = L.sizes
        if not u + v:
            return call(**kw)
        x, given = first_tensor((), kw), kw.get("past_key_values")
        rows, tokens = x.shape[:2]
        held = cached(given)
        if held and memory(given).get("prefix") != (u, v):
            raise SpecError(
                f"{self.name}: the cache holds {held} tokens that were read under another prompt than the live one; start "
                "with an empty cache, or activate the adapters it was filled with"
            )
        there = _there(L, rows, x.device)  # (rows, u + v), or None where every row has all of it
        behind_it = held - u - v if held else 0
        _longer_mask(self.name, kw, rows, tokens + behind_it, u + v, there)
        _later_positions(kw, rows, tokens, behind_it, u, 0 if held else v, u + v, there)
        if not held:
            if v:
                self._speak(L, kw, rows)
            if u:
                self._recall(L, kw, rows)
        out = call(**kw)
        note(cache_of(out), prefix=(u, v))
        if u and given is None and kw.get("use_cache") is False and cache_of(out) is not None:
            out.past_key_values = None
        return _cut(out, 0 if held else v)

    def _speak(self, L: Prefix, kw: dict[str, Any], rows: int) -> None:
        """Soft tokens in front of the embeddings."""
        assert L.tokens is not None
        ids, x = kw.pop("input_ids", None), kw.get("inputs_embeds")
        x = self.table(ids) if x is None else x
        soft = L.tokens.to(x.dtype)
        kw["inputs_embeds"] = torch.cat([_rows(soft, rows), x], 1)
        kinds = kw.get("token_type_ids")
        if kinds is not None:
            kw["token_type_ids"] = torch.cat([kinds.new_zeros(rows, soft.shape[-2]), kinds], 1)

    def _recall(self, L: Prefix, kw: dict[str, Any], rows: int) -> None:
        """Keys and values in an empty cache."""
        assert L.kv is not None
        if self.module.training and any(getattr(m, "gradient_checkpointing", False) for m in self.module.modules()):
            raise SpecError(
                f"{self.name}: gradient checkpointing throws away the cache, and the prefix with it; turn one of the two off"
            )
        x = kw["inputs_embeds"] if kw.get("inputs_embeds") is not None else self.base.op.like
        dtype = x.dtype
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        flat = _rows(L.kv.to(dtype), rows)  # (rows, places, m)
        kv = flat.reshape(*flat.shape[:2], self.layers, 2, self.heads, self.size).permute(2, 3, 0, 4, 1, 5)
        cache = kw.get("past_key_values")
        if cache is None:
            cache = kw["past_key_values"] = (self.empty or need("transformers", "train").DynamicCache)()
        for i in range(self.layers):
            cache.update(kv[i, 0], kv[i, 1], i)


def _number(config: Any, *words: str) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((n for w in words if isinstance(n := getattr(text, w, None), int)), None)


def _rows(t: Tensor, rows: int) -> Tensor:
    """(…, v, d) with an axis for the rows of the batch; copies of rows, as beam search makes them, are recognised."""
    if t.dim() == 2:
        return t.expand(rows, *t.shape)
    if rows % t.shape[0]:
        raise SpecError(f"prompts for {t.shape[0]} rows were given; the batch has {rows}")
    return t if t.shape[0] == rows else t.repeat_interleave(rows // t.shape[0], 0)


def _there(L: Prefix, rows: int, device: torch.device) -> Tensor | None:
    if L.has is None and L.holds is None:
        return None
    u, v = L.sizes
    parts = [(L.holds, u), (L.has, v)]
    full = [torch.ones(rows, k, dtype=torch.bool, device=device) if t is None else t.to(device) for t, k in parts]
    return torch.cat(full, 1)


def _longer_mask(name: str, kw: dict[str, Any], rows: int, seen: int, more: int, there: Tensor | None) -> None:
    mask = kw.get("attention_mask")
    if mask is None and there is None:
        return
    if mask is None:
        assert there is not None
        mask = torch.ones(rows, seen, dtype=torch.int64, device=there.device)
    elif not isinstance(mask, Tensor) or mask.dim() != 2:
        raise SpecError(
            f"{name}: a prompt needs the attention_mask as (batch, tokens); a ready-made mask over keys cannot be lengthened "
            "(a static cache makes one: use the dynamic cache)"
        )
    front = mask.new_ones(rows, more) if there is None else there.to(mask.dtype)
    kw["attention_mask"] = torch.cat([front, mask], 1)


def _later_positions(
    kw: dict[str, Any], rows: int, tokens: int, seen: int, u: int, soft: int, more: int, there: Tensor | None
) -> None:
    """Real tokens come behind the prompt. Left to the model where it numbers tokens by itself and no row is filled up."""
    position = kw.get("position_ids")
    if position is None and there is None:
        return
    device = there.device if there is not None else position.device  # type: ignore[union-attr]
    if position is None:
        position = (torch.arange(tokens, device=device) + seen).expand(rows, tokens)
    elif position.dim() != 2 or (not seen and not torch.compiler.is_compiling() and bool((position.diff(dim=-1) < 0).any())):
        raise SpecError("a prompt stands in front of one text per row: no packed rows, and position_ids of (batch, tokens)")
    later = position + (more if there is None else there.sum(1, keepdim=True))
    if soft:
        front = torch.arange(u, u + soft, device=device).expand(position.shape[0], soft)
        if there is not None:
            front = (there.cumsum(1) - 1).clamp_min(0)[:, u:]
        later = torch.cat([front, later], 1)
    kw["position_ids"] = later


def _cut(out: Any, v: int) -> Any:
    """The output without the states of soft tokens."""
    if not v or _whole:
        return out
    if isinstance(out, Tensor):
        return out[:, v:]
    if isinstance(out, tuple):
        return (out[0][:, v:], *out[1:])
    out.last_hidden_state = out.last_hidden_state[:, v:]
    if getattr(out, "hidden_states", None) is not None:
        out.hidden_states = tuple(h[:, v:] for h in out.hidden_states)
    return out
