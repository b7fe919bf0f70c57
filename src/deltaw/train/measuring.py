"""What the plan's init wants to know, measured on the first batches of the training data."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..plan import Plan
from ..probe import Stats, asking, chooser, needs_of, places, probe
from .base import cache_root
from .batches import Collate, Order
from .encode import Encoded
from .host import has_accelerator
from .loss import label_loss
from .progress import Progress
from .recipe import TrainPart, plain


def measure(model: Any, plan: Plan, train: Encoded | None, t: TrainPart, pad: int, show: Progress, note: Any) -> Stats | None:
    """Stats for the plan's init, from its own cache where the same was measured before; None if it needs none."""
    needs = needs_of(plan)
    if not needs:
        return None
    if "original" in needs:
        raise SpecError(
            f"{asking(plan)[0]} compares the base with the weights before quantisation, and a recipe names one model: "
            "deltaw.attach(model, plan, stats=deltaw.probe(model, (), plan, original=...)) in Python"
        )
    if train is None:
        raise SpecError(
            f"{asking(plan)[0]} is measured on rows with labels, and under grpo there are none: start with another init, or "
            "from an adapter that was trained on such rows"
        )
    size = t.batch_size
    order = list(
        islice(
            Order([len(i["input_ids"]) for i in train.items], size, t.seed, t.sort_by_length), size * t.probe_batches
        )
    )
    batches = [Collate(pad)([train.items[i] for i in order[k : k + size]]) for k in range(0, len(order), size)]
    note(f"{' and '.join(asking(plan))}: measuring {', '.join(sorted(needs))} on {len(batches)} batches, before training")
    if has_accelerator():
        import torch

        model.to(torch.accelerator.current_accelerator())

    def step(done: int, total: int | None) -> None:
        if done == 1:
            show.begin(total or 0, what="measuring")
        show.step(done)

    def loss(model: Any, batch: Any) -> Any:
        total, count = label_loss(model, batch)
        return total / count

    try:
        return probe(
            model,
            batches,
            plan,
            loss=loss,
            forward=_inner(model, plan),
            cache=_cache(),
            progress=step,
            seed=t.seed,
        )
    finally:
        show.end()


def _cache() -> Path | None:
    """Where measurements are kept; None where nothing can be written: then every process measures for itself."""
    place = cache_root() / "probes"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place if os.access(place, os.W_OK) else None


def _inner(model: Any, plan: Plan) -> Any:
    """Call the backbone where it holds every site: nobody needs the vocabulary."""
    body = getattr(model, "base_model", model)
    inside = {id(m) for m in body.modules()}
    part = body if all(id(a.site.module) in inside for a in places(model, plan)) else model
    return lambda _, batch: part(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False)


def as_asked(plan: Plan, recipe: dict[str, Any]) -> bool:
    """Is this the recipe's plan, apart from the overrides where its init has set every rank?"""
    left_out = {"overrides"} if chooser(plan) is not None else set[str]()
    found, asked = plain(plan.to_dict()), plain(recipe)
    return all(found[k] == asked[k] for k in found if k not in left_out)
