"""Ranks that are found by training: a search adapter in two levels, then a plan with what it found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from .attach import attach
from .bilevel import hypergradient
from .errors import SpecError
from .methods.rank import RANKS
from .passes import loss_of
from .plan import Plan, as_plan
from .spec import METHODS, change, from_config


def search_ranks(
    model: nn.Module,
    plan: Plan | Any,
    policy: str | Any,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    steps: int = 100,
    lr: float = 3e-4,
    outer_lr: float = 3e-4,
    loss: Callable[[Any, Any], Tensor] = loss_of,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The plan with the ranks that a policy with a search structure of its own finds ("autolora", "diffora").

    Every step: the outer variables c make an Adam step (betas 0.5, 0.999) on the validation loss through one unrolled step of the factors
    (deltaw.bilevel.hypergradient), then the factors make one on the training loss. train, validation: batches as for deltaw.probe, gone
    through in turn. The search adapter is taken off again; ranks become overrides ({"r": k}, None for 0). The same seed gives the same ranks.
    """
    plan, policy = as_plan(plan), from_config(policy, RANKS)
    if not hasattr(policy, "of"):
        raise SpecError(f"rank policy '{policy.key}' needs no search of this kind: Plan(ranks=...), or its own search(...)")
    if not len(train) or not len(validation):
        raise SpecError("a search in two levels needs batches of both parts, train and validation")
    space = METHODS[policy.key](r=policy.r, alpha=policy.alpha)  # type: ignore[call-arg]
    adapted = attach(model, replace(plan, method=space, overrides={}, init=None, ranks=None, rules=()), name="search")
    try:
        trained = adapted.trainable()
        outer = {k: t for k, t in trained.items() if k.endswith(".c")}
        inner = [t for k, t in trained.items() if k not in outer]
        up = torch.optim.Adam(outer.values(), lr=outer_lr, betas=(0.5, 0.999))
        down = torch.optim.Adam(inner, lr=lr)
        a, b = cycle(train), cycle(validation)
        for step in range(steps):
            one, two = next(a), next(b)
            found = hypergradient(list(outer.values()), inner, lambda one=one: loss(model, one), lambda two=two: loss(model, two), lr)  # type: ignore[misc]
            for t, g in zip(outer.values(), found):
                t.grad = g
            up.step()
            down.zero_grad()
            loss(model, one).backward()  # type: ignore[no-untyped-call]
            for t in outer.values():
                t.grad = None
            down.step()
            if progress is not None:
                progress(step + 1, steps)
        ranks = policy.of({k.removesuffix(".c"): t.detach() for k, t in outer.items()})
        sites = [x.site.name for x in adapted.assignments if x.shares is None]
    finally:
        adapted.detach()
    exact = {r"\A" + re.escape(s): None if not ranks[s] else change(plan._method_for(s, set()), {"r": ranks[s]}) for s in sites}
    return replace(plan, overrides=exact, ranks=None)
