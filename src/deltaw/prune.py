"""Smaller models by whole heads and neurons, and adapters that travel between the small model and the large one."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .attach import Adapted, attach
from .errors import SpecError
from .methods.compress.indices import IndexMap
from .methods.compress.loram import LoRAM
from .plan import Plan
from .spec import METHODS

OUTPUTS = {"q_proj": "heads", "k_proj": "groups", "v_proj": "groups", "gate_proj": "neurons", "up_proj": "neurons"}
INPUTS = {"o_proj": "heads", "down_proj": "neurons"}


@dataclass
class Pruned:
    """The small model, and what became of each linear layer of the large one."""

    model: nn.Module
    maps: dict[str, IndexMap] = field(default_factory=dict)


def units(model: Any) -> dict[str, int]:
    """Of a llama-like model: key/value groups, query heads a group, the size of a head, neurons of an MLP."""
    config = model.config
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {"groups": groups, "per_group": heads // groups, "size": size, "neurons": config.intermediate_size}


@torch.no_grad()
def prune_structured(model: Any, keep: Mapping[int, Mapping[str, Tensor]]) -> Pruned:
    """A copy of a llama-like model (q, k, v, o, gate, up, down projections) with only some units left: keep = {layer: {"groups": numbers of
    key/value groups, "neurons": numbers of MLP neurons}}; what is not named stays. A group takes its query heads along. The output is that of the
    large model with the other units' outputs set to zero. Errors: SpecError for a unit that is not there.
    """
    facts, small = units(model), copy.deepcopy(model)
    out = Pruned(small)
    for name, layer in list(small.named_modules()):
        found = re.search(r"\.(\d+)\.(?:self_attn|mlp)\.(\w+)$", name)
        if not isinstance(layer, nn.Linear) or found is None or found.group(2) not in {**OUTPUTS, **INPUTS}:
            continue
        word, chosen = found.group(2), keep.get(int(found.group(1)), {})
        kind = {**OUTPUTS, **INPUTS}[word]
        kept = chosen.get("neurons" if kind == "neurons" else "groups")
        shape = (layer.out_features, layer.in_features)
        if kept is None:
            out.maps[name] = IndexMap(shape)
            continue
        most = facts["neurons" if kind == "neurons" else "groups"]
        if not len(kept) or int(kept.min()) < 0 or int(kept.max()) >= most or len(kept.unique()) != len(kept):
            raise SpecError(f"{name}: numbers from 0 to {most - 1}, each once, at least one, were expected; found {kept.tolist()[:8]}")
        each = {"neurons": 1, "groups": facts["size"], "heads": facts["size"] * facts["per_group"]}[kind]
        at = (kept.long()[:, None] * each + torch.arange(each)).flatten()
        mapped = IndexMap(shape, at if word in OUTPUTS else None, at if word in INPUTS else None)
        out.maps[name] = mapped
        layer.weight = nn.Parameter(mapped.restrict(layer.weight).clone(), requires_grad=layer.weight.requires_grad)
        if layer.bias is not None and word in OUTPUTS:
            layer.bias = nn.Parameter(layer.bias[at.to(layer.bias.device)].clone(), requires_grad=layer.bias.requires_grad)
        layer.out_features, layer.in_features = layer.weight.shape
    return out


def by_norm(model: Any, ratio: float, first: int = 1, last: int = 1) -> dict[int, dict[str, Tensor]]:
    """keep for prune_structured: of every layer but the first and last ones, the share 1 - ratio of groups and neurons whose weights
    (all projections of the unit) have the largest norm. At least one of each is left."""
    if not 0 <= ratio < 1:
        raise SpecError(f"ratio is the share that is removed, in [0, 1); found {ratio}")
    facts, layers = units(model), model.config.num_hidden_layers
    scores: dict[int, dict[str, Tensor]] = {}
    for name, layer in model.named_modules():
        found = re.search(r"\.(\d+)\.(?:self_attn|mlp)\.(\w+)$", name)
        if found is None or found.group(2) not in {**OUTPUTS, **INPUTS}:
            continue
        kind = "neurons" if {**OUTPUTS, **INPUTS}[found.group(2)] == "neurons" else "groups"
        W = layer.weight.detach().float()
        square = W.square().sum(1 if found.group(2) in OUTPUTS else 0).view(facts[kind], -1).sum(1)
        mine = scores.setdefault(int(found.group(1)), {})
        mine[kind] = mine.get(kind, 0) + square
    out = {}
    for k, mine in scores.items():
        if first <= k < layers - last:
            out[k] = {kind: s.topk(max(1, round((1 - ratio) * len(s)))).indices.sort().values.cpu() for kind, s in mine.items()}
    return out


@torch.no_grad()
def recover(adapted: Adapted, pruned: Pruned, large: nn.Module, new: Literal["zero", "normal"] = "zero", name: str = "default") -> Adapted:
    """LoRAM: the adapter that was trained on the small model, as a plain LoRA on the large one, attached there: B_p at the kept rows and A_p at
    the kept columns; what is new is 0, or for A's new columns N(0, 1 / r²). Merging goes into the large model, never into the small (or
    aligned) one. Source: Zhang et al. 2025 ("zeroA", "normA"). Errors: NotMergeable for an adapter without exact factors.
    """
    pairs = adapted.to_lora().factors
    made = {s: LoRAM(new).recover(pair, pruned.maps.get(s) or IndexMap((len(pair[0]), pair[1].shape[1])), adapted.plan.seed, s) for s, pair in pairs.items()}
    ranks = {s: B.shape[1] for s, (B, _) in made.items()}
    plan = Plan(
        METHODS["lora"](r=max(ranks.values()), alpha=float(max(ranks.values()))), targets="|".join(map(re.escape, made)),  # type: ignore[call-arg]
        overrides={r"\A" + re.escape(s): {"r": r, "alpha": float(r)} for s, r in ranks.items()}, seed=adapted.plan.seed,
    )  # fmt: skip
    out = attach(large, plan, name)
    for site, entry in out.entries().items():
        B, A = made[site]
        if entry.get("B").shape != B.shape or entry.get("A").shape != A.shape:
            raise SpecError(f"{site}: the large model's weight is another than the map's {pruned.maps[site].shape}")
        entry.get("B").copy_(B)
        entry.get("A").copy_(A)
    return out



def kept(adapted: Adapted) -> dict[int, dict[str, Tensor]]:
    """keep for prune_structured, of an adapter with the method loraprune: the units whose masks are 1."""
    facts, out = units(adapted.model), dict[int, dict[str, Tensor]]()
    for site, entry in adapted.entries().items():
        found = re.search(r"\.(\d+)\.(?:self_attn|mlp)\.(v_proj|up_proj)$", site)
        if found is None or "u" not in entry.own:
            continue
        kind = "groups" if found.group(2) == "v_proj" else "neurons"
        out.setdefault(int(found.group(1)), {})[kind] = entry.get("u").view(facts[kind], -1)[:, 0].nonzero().flatten().cpu()
    return out


@torch.no_grad()
def finished(adapted: Adapted) -> Pruned:
    """LoRAPrune's end: the adapter merged, then its masked units cut out: the small model gives what the masked one gives."""
    keep = kept(adapted)
    if not keep:
        raise SpecError("no masks: this adapter is not of the method loraprune, or not on a llama-like model")
    for entry in adapted.entries().values():
        entry.get("u").fill_(1.0)  # cutting takes the place of masking
    merged = adapted.merge().model()
    for layer, units_ in keep.items():
        for site, entry in adapted.entries().items():
            found = re.search(rf"\.{layer}\.(?:self_attn|mlp)\.(\w+)$", site)
            if found and found.group(1) in OUTPUTS and (mine := units_.get("neurons" if OUTPUTS[found.group(1)] == "neurons" else "groups")) is not None:
                u = entry.get("u").view(-1)
                each = len(u) // units(adapted.model)["neurons" if OUTPUTS[found.group(1)] == "neurons" else "groups"]
                mask = torch.zeros(len(u) // each).index_fill(0, mine, 1.0).repeat_interleave(each)
                u.copy_(mask)
    return prune_structured(merged, keep)
