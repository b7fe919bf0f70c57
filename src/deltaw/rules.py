"""The engine behind rules (see deltaw.methods.rules): hooks on an optimiser, edits that keep its state in step.

`Adapted.optimizer` installs it where a method or the plan has rules. It rides on torch's own step hooks, so it works in
any loop and counts optimiser steps; its memory rides in the optimiser's state dict, so whatever saves that resumes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .entry import Entry
from .errors import SpecError, StateMismatch
from .sites import Site
from .sites.find import layer_index
from .sites.watch import Watch, mean_of_processes, several
from .spec import Method, Start, Tensors

if TYPE_CHECKING:
    from .attach import Adapted

STATE = "rules"  # the key in the optimiser's state dict


def owners(method: Method) -> Iterator[Method]:
    """A method and those it wraps."""
    yield method
    for f in fields(method):  # type: ignore[arg-type]
        if isinstance(inner := getattr(method, f.name), Method):
            yield from owners(inner)


def remap(state: dict[str, Any], shape: torch.Size, source: Tensor) -> None:
    """Every state tensor of the parameter's old shape takes the form of `source`: entry i is the old entry source[i]
    (flat), or zero where that is -1. Counters are left alone, whatever the optimiser."""
    come, safe = source.flatten() >= 0, source.flatten().clamp(min=0)
    for key, t in state.items():
        if not isinstance(t, Tensor) or t.dim() == 0:
            continue
        if t.shape != shape:
            raise SpecError(
                f"this optimiser's '{key}' has shape {tuple(t.shape)} for a tensor of shape {tuple(shape)}: a rule changes "
                "which entries are trained, which needs an optimiser that remembers every entry by itself (AdamW, SGD)"
            )
        old = t.flatten() if t.numel() else t.new_zeros(1)
        state[key] = torch.where(come, old[safe], 0).to(t.dtype).view(source.shape)


class View:
    """See deltaw.methods.rules.View."""

    def __init__(self, engine: Engine, entry: Entry, ends: list[tuple[Site, bool]], method: Method, order: tuple[int, int]):
        self.engine, self.entry, self.ends, self.method, self.order = engine, entry, ends, method, order
        self.site, self.name = ends[0][0], ends[0][0].name
        self.s: dict[str, Tensor] = {}

    @property
    def step(self) -> int:
        return self.engine.step

    @property
    def p(self) -> Tensors:
        return self.entry.tensors(dict.fromkeys(self.entry.signals.values(), torch.empty(0)))

    def trained(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.entry.named() if t.requires_grad}

    def base(self) -> Tensor:
        return self.draw("").dense()

    @torch.no_grad()
    def weight(self) -> Tensor:
        w: Tensor = self.entry.layer(self.site.leaf(), {}).op.dense()  # type: ignore[attr-defined]
        return w.to(torch.promote_types(w.dtype, torch.float32))

    def gradient(self) -> Tensor:
        found = [w.sum for w in self.engine.watched.get(self.name, ()) if w.sum is not None]
        if not found:
            raise SpecError(
                f"{self.name}: no gradient of the weight was seen before this step. A rule needs it here: call the layers as "
                "modules, in a model that was not compiled before, and make the optimiser before the first forward"
            )
        return mean_of_processes(torch.stack(found).sum(0))

    def draw(self, word: str) -> Start:
        seed = self.engine.adapted.plan.seed
        return Start(self.name, self.site.kind, self.site.leaf().op, seed, self.method).at(f"{word}/{self.step}", None)

    @torch.no_grad()
    def set(self, name: str, value: Tensor, source: Tensor | None = None, restart: bool = False) -> None:
        t, old = self.entry.get(name), self.entry.get(name).shape
        if value.shape == old:
            t.copy_(value)
        elif t.requires_grad and several():
            raise SpecError(f"{self.name}.{name}: DDP cannot train a tensor whose size changes; use one process")
        else:
            t.data, self.entry.kept, restart = value.to(t).clone(), None, restart or source is None
        if source is not None or restart:
            t.grad = None
        state = self.engine.optimizer.state
        if restart:
            state.pop(t, None)
        elif source is not None and t in state:
            remap(state[t], old, source)

    def damp(self, name: str, factor: float) -> None:
        t = self.entry.get(name)
        self.engine.damped.append((t, t.detach().clone(), factor))


class Engine:
    def __init__(self, adapted: Adapted, rules: list[tuple[Any, list[View]]]):
        self.adapted, self.rules, self.step = adapted, rules, 0
        self.watched: dict[str, list[Watch]] = {}
        self.damped: list[tuple[Tensor, Tensor, float]] = []
        self.optimizer: Any = None  # only inside a hook: the optimiser owns the engine, not the other way round

    def watch(self) -> None:
        """See to it that gradients are summed where the next step asks for them, and only there."""
        wanted = {v.name: v for rule, views in self.rules for v in views if rule.watches(v)}
        for name in self.watched.keys() - wanted.keys():
            _close({name: self.watched.pop(name)})
        for name, view in wanted.items():
            if name not in self.watched:
                self.watched[name] = [Watch(*end) for end in view.ends]
            for w in self.watched[name]:
                w.sum = None

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            raise SpecError("optimizer.step(closure) computes gradients inside the step, before which rules act: call backward first")
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
        self.step = int(saved.pop("step"))
        if {k: set(v) for k, v in saved.items()} != {k: set(v) for k, v in ours.items()}:
            found = ", ".join(saved) or "none"
            raise StateMismatch(f"this optimiser state belongs to other rules or sites: expected {', '.join(ours)}; found {found}")
        for word, views in ours.items():
            for name, v in views.items():
                where = v.site.leaf().op.like.device
                v.s = {key: t.detach().clone().to(where) for key, t in saved[word][name].items()}
        self.watch()


def install(adapted: Adapted, optimizer: torch.optim.Optimizer) -> None:
    """Make the rules of an adapter act on an optimiser; nothing is done where there are none."""
    entries, asked = adapted.entries(), dict[Any, list[tuple[str, Method]]]()
    ends: dict[str, list[tuple[Site, bool]]] = {name: [] for name in entries}
    for a in adapted.assignments:
        ends[a.shares or a.site.name].append((a.site, a.flip))
        for owner in owners(a.method) if a.shares is None else ():
            for rule in owner.rules():
                asked.setdefault(rule, []).append((a.site.name, owner))
        for rule in adapted.plan.rules if a.shares is None else ():
            asked.setdefault(rule, []).append((a.site.name, a.method))
    if not asked:
        return
    engine = Engine(adapted, [])
    for rule, wanted in asked.items():
        layers = sorted({(layer_index(s) is None, layer_index(s) or 0) for s, _ in wanted})
        number = {s: layers.index((layer_index(s) is None, layer_index(s) or 0)) for s, _ in wanted}
        views = [View(engine, entries[s], ends[s], m, (number[s], len(layers))) for s, m in wanted]
        engine.rules.append((rule, views))
        for view in engine.rules[-1][1]:
            view.s = rule.start(view)
    engine.watch()
    optimizer.register_step_pre_hook(engine.before)
    optimizer.register_step_post_hook(engine.after)
    optimizer.register_state_dict_post_hook(engine.save)
    optimizer.register_load_state_dict_pre_hook(engine.load)
    weakref.finalize(optimizer, _close, engine.watched)


def _close(watched: dict[str, list[Watch]]) -> None:
    for w in sum(watched.values(), []):
        w.hook.remove()
