"""PEFT's SHADOW. Its keys hold the word "default", whatever the name of the adapter."""

from __future__ import annotations

import re
from typing import Any

from ...plan import Assignment
from ...spec import Method
from .config import PREFIX
from .dialect import Dialect, P, dialect, new, plain

NET = "base_model.shadow_backbone.default."
AROUND = {"down": "shadow_down.default.weight", "up": "shadow_up.default.weight"} | {
    f"{w}{ours}": f"shadow_update_{part}.default.{theirs}"
    for w, part in (("T", "transform"), ("G", "gate"))
    for ours, theirs in {"1": "0.weight", "a": "0.bias", "2": "2.weight", "b": "2.bias"}.items()
}


@dialect
class Shadow(Dialect):
    """PEFT has a T and a G on the last block, which nothing reads: written as zeros, not read."""

    type = "SHADOW"
    methods = ("shadow",)
    kinds = frozenset({"block"})
    alone = True
    handled = frozenset({"r", "shadow_alpha", "shadow_dropout", "shadow_num_hidden_layers", "update_hidden_size"})
    neutral = {
        "shadow_model": ("mirror",), "shadow_hidden_size": (None,), "shadow_intermediate_size": (None,),
        "shadow_num_attention_heads": (None,), "share_embeddings": (True,),
    }  # fmt: skip
    ignored = frozenset({"init_weights", "auxiliary_loss_weight"})  # the loss of the network alone: the training loop's

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "shadow_alpha": plain(method.alpha), "shadow_dropout": method.dropout, "shadow_model": "mirror",
                "shadow_num_hidden_layers": method.layers, "update_hidden_size": method.width or None}  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        return new("shadow", r=f.get("r", 8), alpha=f.get("shadow_alpha", 0.1), dropout=f.get("shadow_dropout", 0.2),
                   layers=f.get("shadow_num_hidden_layers") or 1, width=f.get("update_hidden_size") or 0)  # fmt: skip

    def refusal(self, a: Assignment) -> str | None:
        if not re.fullmatch(r"model\.layers\.\d+", a.site.name):
            return "the network of PEFT's SHADOW is like ours where the blocks are 'model.layers' and get the embeddings as they are"
        config = getattr(getattr(a.site.module, "self_attn", None), "config", None)
        if a.method.layers > 1 and len(set(getattr(config, "layer_types", None) or ())) > 1:  # type: ignore[attr-defined]
            return "PEFT's network has blocks of several kinds here, ours are all like the first"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        out, like = {}, p["down"]
        for word, shape in self._shapes(a).items():
            out[f"{PREFIX}{a.site.name}.{AROUND[word]}"] = p[word] if word in p else like.new_zeros(shape)
        return out | {_beside(k): v for k, v in p.items() if k not in AROUND}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[f"{PREFIX}{a.site.name}.{AROUND[k]}" if k in AROUND else _beside(k)] for k in own}

    def _shapes(self, a: Assignment) -> dict[str, tuple[int, ...]]:
        declared: Any = a.method.params(*a.site.shape)
        return {word: declared[word].shape for word in AROUND}


def _beside(word: str) -> str:
    """net.0.mlp.up.weight -> the key of PEFT."""
    return NET + (word if word.startswith("norm.") else f"layers.{word.removeprefix('net.')}")
