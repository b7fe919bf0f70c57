"""PEFT's TRAINABLE_TOKENS: as a method of its own (beside LoRA it is a field of that configuration)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...errors import StateMismatch
from ...plan import Assignment
from ...spec import Method
from .config import PREFIX
from .dialect import Dialect, P, dialect, new, other_ends

KEY = "trainable_tokens_delta"


@dialect
class Tokens(Dialect):
    """The rows in the order of `token_indices`. PEFT gives a tied head the same rows by itself and stores them twice."""

    type = "TRAINABLE_TOKENS"
    methods = ("trainable_tokens",)
    kinds = frozenset({"embedding"})
    tied = True
    handled = frozenset({"token_indices"})
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"token_indices": sorted(method.ids)}

    def method(self, f: dict[str, Any]) -> Method:
        return new("trainable_tokens", ids=tuple(f.get("token_indices") or ()))

    def pack(self, a: Assignment, p: P) -> P:
        return {KEY: p["v"]}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        ids, W = torch.tensor(sorted(a.method.ids)), a.site.leaf().op  # type: ignore[attr-defined]
        return {"v": t[KEY], "v0": W.cols(ids.to(W.like.device)).detach().to(own["v0"]), "i": ids}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        ids, names = config.get("token_indices") or [], []
        for a in plan.resolve(model):
            if a.shares is None and (why := self.refusal(a)):
                raise StateMismatch(f"adapter_config.json: {a.site.name}: {why}")
            names += [a.site.name, *(ends := other_ends(a.site, model))]
            first = tensors.get(f"{PREFIX}{a.site.name}.{KEY}")
            for end in ends:
                tensors.pop(f"{PREFIX}{end}.base_layer.{KEY}", None)  # PEFT's own tie below rows that replace it
                other = tensors.get(f"{PREFIX}{end}.{KEY}")
                if first is not None and other is not None and not torch.equal(first, other):
                    raise StateMismatch(f"{a.site.name} and {end} share their weight here; the file has other rows for each")
        for key in tensors:
            if key.endswith("." + KEY) and len(tensors[key]) == len(ids):
                tensors[key] = tensors[key][sorted(range(len(ids)), key=lambda k: ids[k])]
        return replace(plan, targets=tuple(dict.fromkeys(names)))
