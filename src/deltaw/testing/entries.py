"""The laws of what decides or acts once, before or after training: rank policies and compressors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import torch

from ..methods.compress import COMPRESSORS
from ..methods.rank import RANKS
from ..ops import as_op
from ..spec import METHODS, Start, from_config, to_config
from .laws.base import NotApplicable, must
from .tiny import values

TABLES = {"rank": RANKS, "compress": COMPRESSORS}
SITES = {f"layers.{k}.{name}": shape for k in range(3) for name, shape in (("q", (12, 10)), ("up", (20, 10)), ("down", (10, 20)))}


def items_of(axis: str) -> Callable[[str], list[Any]]:
    return lambda key: [TABLES[axis][key]()]


def configuration_survives(item: Any) -> str:
    """To plain data, through JSON, and back: an equal object, that cannot be changed."""
    axis = next(a for a, t in TABLES.items() if item.key in t and t[item.key] is type(item))
    again = from_config(json.loads(json.dumps(to_config(item))), TABLES[axis])
    must(again == item, f"{item} came back as {again}")
    if fields(item):
        try:
            setattr(item, fields(item)[0].name, None)
        except FrozenInstanceError:
            return "equal and frozen"
        must(False, "its configuration can be changed")
    return "equal"


def given(item: Any, order: int = 1) -> dict[str, int]:
    """The ranks at nine small sites, which are told in this order."""
    if not hasattr(item, "ranks"):
        raise NotApplicable("it finds ranks by training: see its closed form")
    lora: Any = METHODS["lora"](r=4)  # type: ignore[call-arg]
    starts = [Start(name, "linear", as_op(values(*shape, name=name)), 0, lora) for name, shape in list(SITES.items())[::order]]
    stats = {}
    for name, (m, n) in SITES.items():
        X = values(50, n, name=f"{name} x")
        stats[name] = {"inputs": X.mT @ X / 50, "gradient": values(m, n, name=f"{name} g"), "original": values(m, n, name=f"{name} o")}
    found: dict[str, int] = item.ranks(starts, stats)
    return found


def ranks_fit(item: Any) -> str:
    """Every site has a whole number from 0 to min(m, n), and the policy answers the same when it is asked again."""
    found = given(item)
    must(set(found) == set(SITES) and all(isinstance(r, int) and 0 <= r <= min(SITES[k]) for k, r in found.items()), f"found {found}")
    must(given(item) == found, "asked again it answers something else")
    return f"ranks {min(found.values())} to {max(found.values())}, {sum(found.values())} in all"


def order_of_sites_is_nothing(item: Any) -> None:
    """Told the sites in another order, as another process might, it gives each the same rank."""
    must(given(item) == given(item, -1), "ranks depend on the order of the sites")


def weights_are_not_touched(item: Any) -> str:
    """What it makes of a weight is new tensors, the same when made again; the weight is as it was."""
    if not hasattr(item, "weight"):
        raise NotApplicable("it acts on a whole model: see its closed form")
    W, X = values(12, 10, name="W"), values(50, 10, name="X")
    before = W.clone()
    found = [item.weight(W, {"inputs": X.mT @ X / 50, "scales": X.abs().mean(0), "mean": X.mean(0)}, 0.4) for _ in range(2)]
    must(torch.equal(W, before), "the weight was changed")
    first, second = ([t for t in f if t is not None] for f in found)
    must(all(torch.equal(a, b) for a, b in zip(first, second)), "made again, it is another")
    return f"{len(first)} tensors"


def laws_of(axis: str) -> dict[str, Callable[[Any], str | None]]:
    many: list[Callable[[Any], str | None]] = [configuration_survives]
    many += [ranks_fit, order_of_sites_is_nothing] if axis == "rank" else [weights_are_not_touched]
    return {f.__name__: f for f in many}
