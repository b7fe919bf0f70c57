"""Put a delta on, choose which are live, take it off. The base is never renamed, replaced or written to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .convert import Converted, to_lora
from .entry import Entry, attribute, fill, make
from .errors import SpecError
from .files import fingerprint, save_adapter
from .merge import Merged, merge
from .methods.init import two_factors
from .methods.update import UPDATES, About
from .mixed import Rows
from .plan import Assignment, Plan, as_plan, has_weight
from .probe import Stats, ready
from .rules import asked_of, install
from .session import ATTRIBUTE, CHILD, POOL, SELF, Bag, Place, Restore, Session, session
from .signals import produce
from .sites.experts import ExpertSite
from .sites.prompt import cache_of, note
from .spec import Declared, Method, Param, Start, change, layers_of


class Adapted:
    """One attached adapter: its tensors, its optimiser, its files, its exports."""

    def __init__(self, model: nn.Module, plan: Plan, name: str, assignments: list[Assignment]):
        self.model, self.plan, self.name, self.assignments = model, plan, name, assignments
        self.events: list[dict[str, Any]] = []  # what rules did: {"step", "site", "what"}

    @property
    def parts(self) -> tuple[tuple[str, float | Tensor], ...]:
        """What is live when this is exported: adapter names with weights."""
        return ((self.name, 1.0),)

    # ---- tensors

    def _attached(self) -> Session:
        shared = session(self.model)
        if shared.adapters.get(self.name) is not self:
            raise SpecError(f"this adapter ('{self.name}') has been detached; its handle leads nowhere")
        return shared

    def entries(self) -> dict[str, Entry]:
        """Site name -> its tensors (sites that share another's are not listed)."""
        places = self._attached().places
        out = {}
        for a in self.assignments:
            module, key = _address(a)
            if a.shares is None and (entry := places[module].entry(self.name, key)) is not None:
                out[a.site.name] = entry
        return out

    def pool(self) -> Entry | None:
        """The tensors all sites share."""
        self._attached()
        bag = getattr(self.model, POOL, None)
        return bag[attribute(self.name)] if bag is not None and attribute(self.name) in bag else None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the adapter by "SITE.TENSOR"; shared ones by "SCOPE.TENSOR"."""
        out = {f"{s}.{t}": v for s, e in self.entries().items() for t, v in e.named()}
        pool = self.pool()
        return out | (dict(pool.named()) if pool is not None else {})

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained tensors, by the same names as in `state()`."""
        return {k: v for k, v in self.state().items() if isinstance(v, nn.Parameter) and v.requires_grad}

    def optimizer(self, lr: float, *, steps: int | None = None, **kw: Any) -> torch.optim.Optimizer:
        """The plan's update rule over the trained tensors, keyed by name, with the rules of method and plan installed.

        steps: how many it will make in all; rules with a schedule over the run need that. kw goes to the rule's optimiser
        (weight_decay). Make it before the first forward."""
        tables = {
            a.site.name
            for a in self.assignments
            if a.site.kind == "embedding" or isinstance(a.site.module, nn.Embedding)
        }
        trained = self.trainable()
        lookups = frozenset(k for k in trained if k.rpartition(".")[0] in tables)
        about = About(lookups, self._scale, slots=self._slots())
        made: torch.optim.Optimizer = self._update().optimizer(trained, lr, about=about, **kw)
        install(self, made, steps)
        return made

    def _update(self) -> Any:
        """The plan's update rule; where that is AdamW and a rule needs more of it, what that rule asks for."""
        update = self.plan.update
        for rule in asked_of(self):
            if update.key == "adamw" and rule.update != "adamw":
                update = UPDATES[rule.update](weight_decay=update.weight_decay)
        return update

    def _slots(self) -> dict[str, int]:
        """Trained tensor by name -> the axis of its rank-one terms."""
        out: dict[str, int] = {}
        for site, entry in self.entries().items():
            for owner in layers_of(entry.method):
                out |= {f"{site}.{k}": axis for k, axis in owner.slots.items() if k in entry.own}
        return out

    def ranks(self) -> dict[str, int]:
        """Site -> its rank-one terms that are live: none of whose tensors' slices is all zero by gate (a vector with a number a term)."""
        out = {}
        for site, entry in self.entries().items():
            for owner in layers_of(entry.method):
                found = [(entry.get(k), axis) for k, axis in owner.slots.items() if k in entry.own]
                live = owner.live(entry.tensors(dict.fromkeys(entry.signals.values(), torch.empty(0)))) if found else None
                if live is not None:
                    out[site] = live
                elif found:
                    gates = [t != 0 for t, _ in found if t.dim() == 1]
                    out[site] = int(torch.stack(gates).all(0).sum()) if gates else found[0][0].shape[found[0][1]]
        return out

    def method_at(self, site: str) -> Method:
        return next(a.method for a in self.assignments if a.site.name == site)

    def reconfigure(self, site: str, values: dict[str, Any]) -> None:
        """Other values in the configuration of one site's method; its tensors are the caller's concern. The plan, which is saved, follows."""
        method = change(self.method_at(site), values)
        for a in self.assignments:
            if site in (a.site.name, a.shares):
                a.method = method
        entry = self.entries()[site]
        entry.method, entry.kept = method, None
        exact = r"\A" + re.escape(site)
        others = {k: v for k, v in self.plan.overrides.items() if k != exact}
        self.plan = replace(self.plan, overrides={exact: method, **others})

    def _scale(self, site: str) -> float:
        """s of W + s B A at a site; SpecError where its method is of another form."""
        a, entry = next(a for a in self.assignments if a.site.name == site), self.entries()[site]
        start = Start(site, a.site.kind, entry.shifted(a.site.leaf().op), self.plan.seed, a.method)
        start.own = entry.own
        return two_factors(start, entry.tensors(dict.fromkeys(entry.signals.values(), torch.empty(0))))[2]

    # ---- what it is and what becomes of it

    def report(self) -> dict[str, Any]:
        """Method, sites, counts and bytes, as plain data."""
        trained = self.trainable()
        base = sum(p.numel() for n, p in self.model.named_parameters() if ".deltaw" not in f".{n}")
        count = sum(p.numel() for p in trained.values())
        assert isinstance(self.plan.method, Method)
        return {
            "name": self.name,
            "method": self.plan.method.key,
            "sites": len(self.assignments),
            "trainable": count,
            "share": count / max(base, 1),
            "base": base,
            "bytes": sum(t.numel() * t.element_size() for t in self.state().values()),
            "live": self.name in dict(session(self.model).live),
        }

    def save(self, directory: Any, **kw: Any) -> Any:
        """Write the adapter (see deltaw.files): safetensors and JSON, atomically; a PEFT directory where PEFT has it."""
        return save_adapter(self, directory, **kw)

    def merge(self, probe: Any = None) -> Merged:
        """New weights with this adapter in them, and a certificate; the model itself is left alone."""
        return merge(self, probe)

    def to_lora(self, rank: int | None = None) -> Converted:
        """Plain LoRA factors per site: exact where the algebra has them, cut at `rank` with the error otherwise."""
        return to_lora(self, rank)

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(self.model, self.plan.train_modules)

    def detach(self) -> None:
        """Take the adapter off. When it was the last one the model is as it was before, bit for bit."""
        self._attached()
        _remove(self.model, self.name)

    def __repr__(self) -> str:
        if getattr(self.model.__dict__.get(ATTRIBUTE), "adapters", {}).get(self.name) is not self:
            return f"Adapted('{self.name}': {self.plan.method}, detached)"
        r = self.report()
        return f"Adapted('{self.name}': {self.plan.method}, {r['sites']} sites, {r['trainable']:,} trainable)"


def _address(a: Assignment) -> tuple[str, str]:
    """(module name, local key) of an assignment."""
    if isinstance(a.site, ExpertSite):
        key = f"{a.site.attr}.{a.site.index}"
        return a.site.name[: -len(key) - 1], key
    return a.site.name, ""


def attach(
    model: nn.Module,
    plan: Plan | Method | str,
    name: str = "default",
    *,
    empty: bool = False,
    stats: Stats | None = None,
) -> Adapted:
    """Attach a plan (or a method with default targets) under a name, and make it the live adapter.

    The base's parameters are frozen (their flags come back on detach); state-dict keys, classes and signatures stay.
    The adapter's tensors are registered next to each adapted module as `SITE.deltaw.NAME.…`, in float32 at least.
    empty: leave the tensors uninitialised, for loading. stats: what `deltaw.probe` has measured, for an init that looks at
    gradients or inputs; one that sets ranks as well leaves them in the plan, as overrides. Errors: TargetError, ShapeError, SpecError; on any of them
    nothing has been attached.
    """
    plan = as_plan(plan) if empty else ready(model, as_plan(plan), stats)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise SpecError(f"an adapter name is letters, digits, '_' and '-'; found {name!r}")
    if hasattr(Bag(), attribute(name)):
        raise SpecError(f"'{name}' is a word that torch modules use for themselves; choose another adapter name")
    for path, module in model.named_modules():
        found = module.__dict__.get("forward")
        if (why := getattr(found, "occupied", None)) is not None:
            raise SpecError(f"{path or 'the model'} {why}")
        if isinstance(found, Place) and found.session is not model.__dict__.get(ATTRIBUTE):
            raise SpecError(
                f"{path or 'the model'} already carries an adapter that was attached through another model (a part, a "
                "whole, or a copy); attach through that one, or detach there first"
            )
    existing = model.__dict__.get(ATTRIBUTE)
    if existing is not None and name in existing.adapters:
        raise SpecError(f"an adapter '{name}' is already attached: detach it, or choose another name")
    assignments = plan.resolve(model)
    taken = {m: s for m, p in (existing.places if existing else {}).items() for s in p.sites.values()}
    for a in assignments:
        other = taken.setdefault(_address(a)[0], a.site)
        if type(other) is not type(a.site):
            raise SpecError(
                f"{a.site.name} is adapted as a {other.kind} already, and '{name}' wants it as a {a.site.kind}: the two "
                "would act on different things; leave it out (exclude=...), or detach the other adapter"
            )
    entries, pool = _build(assignments, plan, empty, {} if stats is None else stats.sites)
    shared = existing or _open(model)
    adapted = Adapted(model, plan, name, assignments)
    shared.adapters[name] = adapted
    if pool is not None:
        _bag(model, POOL)[attribute(name)] = pool
    for a, entry in zip(assignments, entries):
        entry.owner = name
        module, key = _address(a)
        place = shared.places.get(module) or _patch(model, module, shared)
        place.sites[key] = a.site
        bag = _bag(place.module, CHILD)
        if attribute(name) not in bag:
            bag[attribute(name)] = Bag()
        bag[attribute(name)][attribute(key) or SELF] = entry  # type: ignore[operator]
        bag.train(place.module.training)  # a new module starts in training mode
    shared.live = ((name, 1.0),)
    _listen(model, shared)
    return adapted


def _build(
    assignments: list[Assignment], plan: Plan, empty: bool, stats: dict[str, dict[str, Tensor]]
) -> tuple[list[Entry], Entry | None]:
    """All entries, before the model is touched."""
    entries: list[Entry] = []
    made: dict[str, Entry] = {}
    todo: list[tuple[Entry, Declared, Start, Any]] = []
    wanted: dict[str, tuple[Param, list[int], Start]] = {}
    for a in assignments:
        if a.shares is not None:  # the same parameters, registered in both places; flipped, or as they are
            twin = Entry(a.method, a.flip)
            first = made[a.shares]
            twin.own, twin.shared, twin.signals = first.own, first.shared, first.signals
            twin._parameters, twin._buffers = first._parameters, first._buffers
            entries.append(twin)
            continue
        entry = Entry(a.method)
        declared = a.method.declare(a.site)
        W = a.site.leaf().op
        start = Start(a.site.name, a.site.kind, W, plan.seed, a.method)
        for word, p in declared.items():
            if isinstance(p, Param) and p.scope != "site":
                key = f"{p.scope}.{word}"
                entry.shared[word] = (key, p.shape)
                earlier, size, _ = wanted.setdefault(
                    key, (p, list(p.shape), Start(p.scope, "shared", W, plan.seed, a.method))
                )
                if (earlier.seed, earlier.train) != (p.seed, p.train):
                    raise SpecError(
                        f"'{word}' is shared by all sites, so overrides cannot give it another start at {a.site.name}"
                    )
                size[:] = [max(x, y) for x, y in zip(size, p.shape, strict=True)]
        entries.append(entry)
        made[a.site.name] = entry
        todo.append((entry, declared, start, plan.init if has_weight(a) else None))
    pool = Entry(assignments[0].method) if wanted else None
    if pool is not None:
        for key, (p, size, start) in wanted.items():
            pool.put(key, make(p, tuple(size), start, key, empty), p.train)
    for entry in entries:
        entry.pool = () if pool is None else (pool,)
    for entry, declared, start, init in todo:
        fill(entry, declared, start, init, empty, stats.get(start.name))
    return entries, pool


def _open(model: nn.Module) -> Session:
    shared = Session()
    for p in model.parameters():
        if p.requires_grad:
            shared.frozen.append(p)
            p.requires_grad_(False)
    model.__dict__[ATTRIBUTE] = shared
    return shared


def _bag(module: nn.Module, word: str) -> nn.ModuleDict:
    if word not in module._modules:
        bag = Bag()
        bag.train(module.training)
        module.add_module(word, bag)
    return module._modules[word]  # type: ignore[return-value]


def _patch(model: nn.Module, name: str, shared: Session) -> Place:
    module = model.get_submodule(name)
    place = Place(module, shared)
    above = [model.get_submodule(".".join(name.split(".")[:k])) for k in range(name.count(".") + 1)]
    if any(isinstance(m, nn.TransformerEncoderLayer) for m in above):
        # its fused inference kernel reads the weights and calls no submodule, unless one of them has a hook
        place.hook = module.register_forward_pre_hook(_nothing)
    shared.places[name] = place
    module.__dict__["forward"] = place
    return place


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook for its presence only."""


def _listen(model: nn.Module, shared: Session) -> None:
    """Before the model: run the producers of signals that a live adapter wants; show mixed rows their batch."""
    wanted = {s for a in shared.adapters.values() for e in a.entries().values() for s in e.signals.values()}
    if shared.hook is not None:
        shared.hook.remove()
        shared.hook = None
    if shared.after is not None:
        shared.after.remove()
        shared.after = None
    if shared.adapters:
        shared.hook = model.register_forward_pre_hook(Listener(sorted(wanted)), with_kwargs=True)
    if wanted:
        shared.after = model.register_forward_hook(keep_notes)


class Listener:
    """Before the model: fill the signals, from a pass in which nothing is live."""

    def __init__(self, wanted: list[str]):
        self.wanted = wanted

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shared = session(model)
        if shared.rows is not None:
            shared.rows.look([*args, *kwargs.values()])
        if not self.wanted:
            return
        live = set(shared.rows.order) if shared.rows is not None else {n for n, _ in shared.live}
        needy = {s for n in live for e in shared.adapters[n].entries().values() for s in e.signals.values()}
        shared.signals, shared.notes = {}, {}
        if shared.off or not needy:
            return
        with disabled(model):
            found = {}
            for s in (
                self.wanted
            ):  # a plain loop: a compiler may come to a comprehension's frame by itself and cannot trace it
                if s in needy:
                    found[s] = produce(s, model, args, kwargs)
        shared.signals = found


def keep_notes(model: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    """After the model: what producers have noted stays with the cache, for the next pass over it."""
    shared = session(model)
    if shared.notes:
        note(cache_of(out), **shared.notes)


def _remove(model: nn.Module, name: str) -> None:
    shared = session(model)
    shared.known(name)
    if shared.rows is not None and name in shared.rows.order:
        raise SpecError(f"'{name}' serves rows of the batch: leave the `with deltaw.rows(...)` block before detaching")
    for key, place in list(shared.places.items()):
        bag = place.module._modules[CHILD]
        assert isinstance(bag, nn.ModuleDict)
        if attribute(name) in bag:
            del bag[attribute(name)]
        if not len(bag):
            del place.module._modules[CHILD]
            if place.hook is not None:
                place.hook.remove()
            if place.module.__dict__.get("forward") is not place:
                pass  # another library has wrapped it meanwhile; what it holds is the base's forward from now on
            elif place.base.set_forward is None:
                del place.module.__dict__["forward"]
            else:
                place.module.__dict__["forward"] = place.base.set_forward
            del shared.places[key]
    pool = model._modules.get(POOL)
    if isinstance(pool, nn.ModuleDict) and attribute(name) in pool:
        del pool[attribute(name)]
        if not len(pool):
            del model._modules[POOL]
    del shared.adapters[name]
    shared.live = tuple((n, w) for n, w in shared.live if n != name)
    _listen(model, shared)
    if not shared.adapters:
        for p in shared.frozen:
            p.requires_grad_(True)
        del model.__dict__[ATTRIBUTE]


def activate(model: nn.Module, names: str | Sequence[str], weights: Sequence[float] | None = None) -> Restore:
    """Make these adapters live, each with a weight (default 1): their deltas are summed at every site.

    Takes effect at once; used as a context manager it restores the earlier choice on leaving.
    """
    shared = session(model)
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        shared.known(name)
    if len(set(chosen)) < len(chosen):
        raise SpecError(f"an adapter is named twice in {chosen}; give it a larger weight instead")
    if weights is None:
        weights = [1.0] * len(chosen)
    if len(weights) != len(chosen):
        raise SpecError(f"{len(chosen)} adapters need {len(chosen)} weights; found {len(weights)}")
    pairs = tuple((n, w if isinstance(w, Tensor) else float(w)) for n, w in zip(chosen, weights))
    return Restore(shared, now=True, live=pairs, signals={}, stacked=False)


def stack(model: nn.Module, names: Sequence[str]) -> Restore:
    """Make these adapters of hidden states live, each fed with what the one before it puts out: a task's adapter on top
    of a language's (MAD-X). The residual of every one is the block's own output: h + U_2 act(D_2 (h + U_1 act(D_1 h))).

    Train the upper one with `stack(model, ["english", "task"])` and its own optimiser alone; exchange the lower one by
    `stack(model, ["swahili", "task"])`. For deltas of weights there is no order: `activate` adds them up.
    """
    shared = session(model)
    for name in names:
        shared.known(name)
    if not names or len(set(names)) < len(names):
        raise SpecError(f"a stack is one or more different adapters, the lowest first; found {list(names)}")
    return Restore(shared, now=True, live=tuple((n, 1.0) for n in names), signals={}, stacked=True)


def disabled(model: nn.Module) -> Restore:
    """`with deltaw.disabled(model):` the base alone, bit for bit."""
    return Restore(session(model), off=True)


def rows(model: nn.Module, names: Sequence[str | None]) -> Restore:
    """`with deltaw.rows(model, ["a", None, "b"]):` row i of the batch runs under adapter names[i], or under none.

    Rows are told apart by the first axis of what a layer sees (or by tokens flattened row by row, and by whole groups
    of copies, as beam search makes them). Layers that get time first, or tokens that a router has picked, are no place
    for it.
    """
    shared = session(model)
    for name in names:
        if name is not None:
            shared.known(name)
    if not names:
        raise SpecError("deltaw.rows needs one adapter name (or None) for every row of the batch; the list is empty")
    return Restore(shared, rows=Rows(list(names)), signals={})


def prompts(model: nn.Module, ends: Tensor | Sequence[int]) -> Restore:
    """`with deltaw.prompts(model, [5, 9]):` the prompt of row i is its first ends[i] tokens (padding counted), for
    adapters that act on the first or last tokens of a prompt. Not needed where the model gets labels, or only prompts."""
    return Restore(session(model), prompts=torch.as_tensor(ends))


def adapters(model: nn.Module) -> Iterator[Adapted]:
    """The adapters attached to a model, in the order they were attached."""
    found = model.__dict__.get(ATTRIBUTE)
    return iter(list(found.adapters.values()) if found is not None else [])
