"""The engine behind rules (see deltaw.methods.rules): hooks on an optimiser, and what rules remember.

`Adapted.optimizer` installs it where a method or the plan has rules. It rides on torch's own step hooks, so it works in
any loop and counts optimiser steps; its memory rides in the optimiser's state dict, so whatever saves that resumes it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .edits import View
from .errors import SpecError, StateMismatch
from .methods.rules import Rule
from .sites import Site
from .sites.find import layer_index
from .sites.watch import Inputs, Watch
from .spec import Method, layers_of

if TYPE_CHECKING:
    from .attach import Adapted

STATE = "rules"  # the key in the optimiser's state dict
WATCHES: dict[Any, type[Watch]] = {True: Watch, "inputs": Inputs}


class Engine:
    """The rules of one adapter beside one optimiser: their views by site, the steps made, what is being watched."""

    def __init__(self, adapted: Adapted, rules: list[tuple[Any, list[View]]], total: int | None = None):
        self.adapted, self.rules, self.step, self.total = adapted, rules, 0, total
        self.watched: dict[tuple[str, Any], list[Watch]] = {}  # (site, what) -> its ends
        self.damped: list[tuple[Tensor, Tensor, float | Tensor]] = []
        self.optimizer: Any = None  # only inside a hook: the optimiser owns the engine, not the other way round

    def watch(self) -> None:
        """See to it that gradients are summed where the next step asks for them, and only there."""
        wanted = {(v.name, what): v for rule, views in self.rules for v in views if (what := rule.watches(v))}
        for key in self.watched.keys() - wanted.keys():
            _close({key: self.watched.pop(key)})
        for key, view in wanted.items():
            if key not in self.watched:
                self.watched[key] = [WATCHES[key[1]](*end) for end in view.ends]
            for w in self.watched[key]:
                w.sum = None

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            raise SpecError(
                "optimizer.step(closure) computes gradients inside the step, before which rules act: call backward first"
            )
        self.optimizer = optimizer
        for rule, views in self.rules:
            rule.before_all(views)
        self.optimizer = None

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step, self.optimizer = self.step + 1, optimizer
        for t, old, factor in self.damped:
            t.copy_(old.lerp(t, factor))
        self.damped.clear()
        for rule, views in self.rules:
            rule.after_all(views)
        self.optimizer = None
        self.watch()

    def views(self) -> dict[str, dict[str, View]]:
        return {f"{k}.{rule.key}": {v.name: v for v in views} for k, (rule, views) in enumerate(self.rules)}

    def save(self, optimizer: Any, state: dict[str, Any]) -> None:
        memory = {word: {name: dict(v.s) for name, v in views.items()} for word, views in self.views().items()}
        state[STATE] = {"step": torch.tensor(self.step), **memory}

    def load(self, optimizer: Any, state: dict[str, Any]) -> None:
        saved, ours = dict(state.pop(STATE, {"step": 0})), self.views()
        step = int(saved.pop("step"))
        if {k: set(v) for k, v in saved.items()} != {k: set(v) for k, v in ours.items()}:
            found = ", ".join(saved) or "none"
            raise StateMismatch(
                f"this optimiser state belongs to other rules or sites: expected {', '.join(ours)}; found {found}"
            )
        for word, views in ours.items():
            for name, v in views.items():
                where = v.site.leaf().op.like.device
                v.s = {key: t.detach().clone().to(where) for key, t in saved[word][name].items()}
        self.step = step
        self.watch()


def asked_of(adapted: Adapted) -> dict[Any, list[tuple[str, Method]]]:
    """The rules of the plan and of its methods, each with the sites it acts on and the method that asks for it there."""
    asked = dict[Any, list[tuple[str, Method]]]()
    for a in adapted.assignments:
        for owner in layers_of(a.method) if a.shares is None else ():
            for rule in owner.rules():
                asked.setdefault(rule, []).append((a.site.name, owner))
        for rule in adapted.plan.rules if a.shares is None else ():
            asked.setdefault(rule, []).append((a.site.name, a.method))
    return asked


def install(adapted: Adapted, optimizer: torch.optim.Optimizer, total: int | None = None) -> None:
    """Make the rules of an adapter act on an optimiser; nothing is done where there are none. total: the steps it will make."""
    entries, asked = adapted.entries(), asked_of(adapted)
    ends: dict[str, list[tuple[Site, bool]]] = {name: [] for name in entries}
    for a in adapted.assignments:
        ends[a.shares or a.site.name].append((a.site, a.flip))
    if not asked:
        return
    moving = [r.key for r in asked if type(r).after is not Rule.after or type(r).after_all is not Rule.after_all]
    if moving and hasattr(optimizer, "outer"):
        raise SpecError(
            f"'{moving[0]}' changes tensors after a step, which an outer optimiser (diloco) would take for what training did"
        )
    engine = Engine(adapted, [], total)
    for rule, wanted in asked.items():
        number = {s: -1 if (k := layer_index(s)) is None else k for s, _ in wanted}  # what is in no layer comes first
        layers = sorted(set(number.values()))
        views = [View(engine, entries[s], ends[s], m, (layers.index(number[s]), len(layers))) for s, m in wanted]
        engine.rules.append((rule, views))
        for view in views:
            view.s = rule.start(view)
    engine.watch()
    optimizer.register_step_pre_hook(engine.before)
    optimizer.register_step_post_hook(engine.after)
    optimizer.register_state_dict_post_hook(engine.save)
    optimizer.register_load_state_dict_pre_hook(engine.load)
    weakref.finalize(optimizer, _close, engine.watched)


def _close(watched: dict[tuple[str, Any], list[Watch]]) -> None:
    for w in sum(watched.values(), []):
        w.hook.remove()
