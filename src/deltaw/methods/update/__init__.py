"""Update rules: how trained tensors move. One file each; the key is the file name.

A rule is a frozen dataclass with `optimizer(named, lr, about=NOTHING, **kw) -> torch.optim.Optimizer`. Parameters are given
to torch by name, so that the optimiser's state is keyed by name; `about` says what the names alone do not.
Tensors with the same settings share one group, and a rule built on torch's optimisers makes them with `fused`: an
adapter is hundreds of small tensors, and the time of a step is the number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ...spec import Registry, dataclass_transform, from_config

T = TypeVar("T")
UPDATES: Registry[Any] = Registry("update")


@dataclass_transform(frozen_default=True)
def update(*, paper: str) -> Callable[[type[T]], type[T]]:
    """Register an update rule under the name of its module."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper, done.registry = (
            cls.__module__.rsplit(".", 1)[-1],
            paper,
            UPDATES,
        )  # what it wraps is found there
        UPDATES.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register


@dataclass(frozen=True)
class About:
    """What a rule may ask about the tensors it moves.

    lookups: names that belong to embeddings and, in a whole model, to its output head. scale(site): s of W + s B A at the site whose
    tensors are "SITE.A" and "SITE.B"; SpecError where the method there is of another form. turned: weights that are stored in x out.
    slots: factors of rank-one terms -> the axis along which the terms are numbered.
    """

    lookups: frozenset[str] = frozenset()
    scale: Callable[[str], float] = lambda site: 1.0
    turned: frozenset[str] = frozenset()
    slots: Mapping[str, int] = field(default_factory=dict)


NOTHING = About()
Settings = tuple[tuple[str, Any], ...]


def grouped(pairs: Iterable[tuple[Settings, tuple[str, nn.Parameter]]]) -> list[dict[str, Any]]:
    """One parameter group for each distinct setting, in the order in which the settings first occur."""
    groups: dict[Settings, list[tuple[str, nn.Parameter]]] = {}
    for settings, named in pairs:
        groups.setdefault(settings, []).append(named)
    return [{"params": members, **dict(settings)} for settings, members in groups.items()]


def rescaled(
    rule: Any,
    factor: Callable[[str, nn.Parameter], tuple[float, float]],
    named: dict[str, nn.Parameter],
    lr: float,
    about: About,
    **kw: Any,
) -> torch.optim.Optimizer:
    """The optimiser of `rule` (or of its key), with the rate and the weight decay of every tensor times factor(name, tensor).

    Its groups are split where tensors of one group get different factors. A schedule has to multiply the rates that it
    finds, as torch's and transformers' do; one that sets a single rate undoes this.
    """
    optimizer: torch.optim.Optimizer = from_config(rule, UPDATES).optimizer(named, lr, about=about, **kw)
    groups = []
    for group in optimizer.param_groups:
        parts: dict[tuple[float, float], tuple[list[nn.Parameter], list[str]]] = {}
        for p, name in zip(group["params"], group["param_names"], strict=True):
            tensors, names = parts.setdefault(factor(name, p), ([], []))
            tensors.append(p)
            names.append(name)
        for (rate, decay), (tensors, names) in parts.items():
            more = {"lr": group["lr"] * rate, "weight_decay": group["weight_decay"] * decay}
            groups.append({**group, "params": tensors, "param_names": names, **more})
    optimizer.param_groups[:] = groups
    return optimizer


FUSED = ("cpu", "cuda", "mps", "xpu")  # the devices with a fused kernel; torch itself asks only when a step is made


def fused(
    make: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], lr: float, **kw: Any
) -> torch.optim.Optimizer:
    """make(groups, lr, fused=True): one kernel for all tensors of a group, where torch has one for their devices and dtypes
    (not on the meta device, not for complex numbers, nor for other layouts than rows: it walks through memory, and moments that
    come from a file lie in rows). `fused`, `foreach` and `differentiable` among the keywords win.
    """
    tensors = [p for g in groups for _, p in g["params"]]
    if all(p.device.type in FUSED and p.is_floating_point() and p.is_contiguous() for p in tensors):
        kw = kw if {"fused", "foreach", "differentiable"} & kw.keys() else {**kw, "fused": True}
    return make(groups, lr=lr, **kw)
