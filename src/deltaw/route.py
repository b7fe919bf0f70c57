"""A router over trained adapters: their exact factors become the frozen experts of a routing method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attach import Adapted, attach
from .errors import SpecError
from .plan import Plan
from .session import ATTRIBUTE
from .sites.find import width
from .spec import METHODS, Method, change

Pair = tuple[Tensor, Tensor]


def route(
    model: nn.Module,
    experts: Mapping[str, Adapted | str | Path],
    method: Method | str = "xlora",
    name: str = "router",
    rank: int | None = None,
    general: Mapping[str, Adapted | str | Path] | None = None,
    **plan: Any,
) -> Adapted:
    """Attach a router whose experts are these adapters, of any method with exact low-rank factors.

    experts: name -> an adapter directory (ours or PEFT's), or an Adapted of this model or of a copy of its base.
    method: a routing method or its key; its `ranks`, and `hidden_size` where it has one, are set from the experts.
    rank: cut experts that have no exact factors at this rank. general: adapters of what every task knows: their mean A and mean B are
    subtracted from each expert's before anything else (GenKnowSub; all of one rank). plan: further fields of the Plan (seed, update, ...).
    The factors are copied: the experts stay as they are, and are no longer needed. Sites where an expert has nothing
    give it rank 0. Errors: NotMergeable for an expert without exact factors, SpecError for one of another base.
    """
    if not experts:
        raise SpecError("a router needs at least one expert; the mapping is empty")
    found = {word: _factors(model, word, expert, rank) for word, expert in experts.items()}
    if general:
        found = without(found, [_factors(model, word, expert, rank) for word, expert in general.items()])
    sites = dict.fromkeys(site for pairs in found.values() for site in pairs)
    ranks = {s: tuple(pairs[s][0].shape[1] if s in pairs else 0 for pairs in found.values()) for s in sites}
    usual = max(ranks.values(), key=list(ranks.values()).count)
    values: dict[str, Any] = {"ranks": usual}
    chosen = METHODS[method]() if isinstance(method, str) else method
    if hasattr(chosen, "hidden_size"):
        values["hidden_size"] = width(model, model)
    chosen = change(chosen, values)
    other = {re.escape(s): {"ranks": list(r)} for s, r in ranks.items() if r != usual}
    adapted = attach(model, Plan(chosen, "|".join(map(re.escape, sites)), overrides=other, tie=False, **plan), name)
    try:
        entries = adapted.entries()
        if missing := [s for s in sites if s not in entries]:
            raise SpecError(f"site '{missing[0]}' of an expert is no place for {chosen.key} in this {type(model).__name__}")
        with torch.no_grad():
            for site, entry in entries.items():
                there = [pairs[site] for pairs in found.values() if site in pairs]
                _put(site, entry.get("B"), torch.cat([B for B, _ in there], 1))
                _put(site, entry.get("A"), torch.cat([A for _, A in there], 0))
                if (filled := getattr(entry.method, "filled", None)) is not None:
                    for word, value in filled(entry.tensors({})).items():
                        entry.get(word).copy_(value)
    except BaseException:
        adapted.detach()
        raise
    return adapted


def without(experts: dict[str, dict[str, Pair]], general: list[dict[str, Pair]]) -> dict[str, dict[str, Pair]]:
    """Every expert's factors minus the general ones' means, factor by factor (which is not their product minus the others')."""
    out: dict[str, dict[str, Pair]] = {}
    for word, pairs in experts.items():
        out[word] = {}
        for site, (B, A) in pairs.items():
            known = [g[site] for g in general if site in g]
            if any(b.shape != B.shape or a.shape != A.shape for b, a in known):
                raise SpecError(f"{site}: general adapters and experts need one rank, so that factors can be subtracted")
            means = [torch.stack(t).mean(0) for t in zip(*known)] if known else [torch.zeros_like(B), torch.zeros_like(A)]
            out[word][site] = (B - means[0].to(B), A - means[1].to(A))
    return out


def _factors(model: nn.Module, word: str, expert: Adapted | str | Path, rank: int | None) -> dict[str, Pair]:
    """site -> (B, A) of one expert; a directory is attached for the moment of reading it."""
    if isinstance(expert, Adapted):
        return expert.to_lora(rank).factors
    from .files import load

    shared = model.__dict__.get(ATTRIBUTE)
    live = shared.live if shared is not None else ()
    adapted = load(model, expert, name=f"expert__{re.sub(r'[^A-Za-z0-9]', '_', word)}")
    try:
        return {s: (B.clone(), A.clone()) for s, (B, A) in adapted.to_lora(rank).factors.items()}
    finally:
        adapted.detach()
        if shared is not None:
            shared.live = live


def _put(site: str, bank: Tensor, factor: Tensor) -> None:
    if bank.shape != factor.shape:
        raise SpecError(f"{site}: an expert has factors for another base: {tuple(bank.shape)} needed, {tuple(factor.shape)} found")
    bank.copy_(factor)
