"""Plan = where x structure x init x update: what will be attached, resolved and previewed before anything is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .errors import SpecError, TargetError
from .methods.init import INITS
from .methods.rank import RANKS
from .methods.update import UPDATES
from .ops import Eye
from .sites import Site, find, leaf_site
from .sites.find import ALL_LINEAR, Candidates, _pick, matches
from .sites.module import ModuleSite
from .spec import METHODS, RULES, Method, Param, Registry, change, from_config, to_config


def one_of(registry: Registry[Any], value: Any, does: str) -> Any:
    """An update rule or an init, from its key, its configuration or itself."""
    value = from_config(value, registry)
    if isinstance(value, type) or not hasattr(value, does):
        again = f": write {value.__name__}()" if isinstance(value, type) and hasattr(value, does) else ""
        raise SpecError(
            f"{registry.what}: found {value!r}{again}; a key, a configuration {{'key': KEY, ...}} or an object was expected (known: {', '.join(registry)})"
        )
    return value


@dataclass
class Assignment:
    """One site, its method, and, for the second end of a tied weight, the site whose tensors it uses."""

    site: Site
    method: Method
    shares: str | None = None
    flip: bool = False


def has_weight(a: Assignment) -> bool:
    """Is there a weight that an init could look at?"""
    return a.site.kind not in ("parallel", "prefix", "attention") and not isinstance(a.site.leaf().op, Eye)


@dataclass(frozen=True)
class Plan:
    """What to attach where.

    method: a Method, or its key for all defaults. targets: a list of module-name suffixes, one regular expression for
    whole names, or "all-linear". exclude: the same language. overrides: {pattern: {field: value} | Method | None}, the
    first pattern that fits a name wins; None leaves the site out (PEFT's rank_pattern is {pattern: {"r": ...}}).
    layers: layer numbers to keep. init, update: keys, configurations ({"key": "galore", "r": 0.25}) or objects
    (`deltaw.methods.update.GaLore(r=0.25)`). ranks: a policy that gives every site its own, before training. rules: what happens between optimiser steps, one or a list, besides what
    the method itself asks for. `deltaw methods --axis init` (rank, update, rules) lists them. train_modules: modules trained in full (heads).
    token_rows: {embedding name: token ids} trained as single rows. tie: one delta for both ends of a tied weight.
    Every name and pattern must match something; `resolve` raises TargetError otherwise.
    """

    method: Method | str
    targets: str | tuple[str, ...] | list[str] = ALL_LINEAR
    exclude: str | tuple[str, ...] | list[str] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    layers: Any = None
    init: Any = None
    ranks: Any = None
    update: Any = "adamw"
    rules: Any = ()
    train_modules: tuple[str, ...] | list[str] = ()
    token_rows: dict[str, Any] = field(default_factory=dict)
    tie: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "method", from_config(self.method))
        if not isinstance(self.method, Method):
            raise SpecError(f"Plan.method must be a method such as LoRA(r=8) or its key; found {self.method!r}")
        if self.init is not None:
            put(self, "init", one_of(INITS, self.init, "fill"))
        if self.ranks is not None:
            put(self, "ranks", one_of(RANKS, self.ranks, "ranks"))
        put(self, "update", one_of(UPDATES, self.update, "optimizer"))
        rules = self.rules if isinstance(self.rules, (list, tuple)) else (self.rules,)
        put(self, "rules", tuple(from_config(r, RULES) for r in rules))
        if bad := [r for r in self.rules if getattr(r, "key", None) not in RULES]:
            raise SpecError(f"Plan.rules are rules or their keys ({', '.join(RULES)}); found {bad[0]!r}")
        for name in ("targets", "exclude", "train_modules"):
            value = getattr(self, name)
            put(self, name, value if isinstance(value, str) else tuple(value))
        if isinstance(self.train_modules, str):
            put(self, "train_modules", (self.train_modules,))
        if self.layers is not None:
            put(self, "layers", (self.layers,) if isinstance(self.layers, int) else tuple(self.layers))
        rows = {k: tuple(int(i) for i in v) for k, v in self.token_rows.items()}
        put(self, "token_rows", rows)

    # ---- to and from plain data

    def to_dict(self) -> dict[str, Any]:
        def plain(v: Any) -> Any:
            return to_config(v) if isinstance(v, Method) else v

        return {
            "method": to_config(self.method),
            "targets": self.targets if isinstance(self.targets, str) else list(self.targets),
            "exclude": self.exclude if isinstance(self.exclude, str) else list(self.exclude),
            "overrides": _ordered({k: plain(v) for k, v in self.overrides.items()}),
            "layers": None if self.layers is None else list(self.layers),
            "init": None if self.init is None else to_config(self.init),
            "ranks": None if self.ranks is None else to_config(self.ranks),
            "update": to_config(self.update),
            "rules": [to_config(r) for r in self.rules],
            "train_modules": list(self.train_modules),
            "token_rows": {k: list(v) for k, v in self.token_rows.items()},
            "tie": self.tie,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        from dataclasses import fields

        from .errors import nearest

        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                raise SpecError(f"a plan has no field '{key}'{nearest(key, names)}")
        ready = dict(data)
        pairs = data.get("overrides", {})
        ready["overrides"] = {
            k: from_config(v) if isinstance(v, dict) and "key" in v else v
            for k, v in (pairs.items() if isinstance(pairs, dict) else pairs)
        }
        return cls(**ready)

    # ---- resolution

    def resolve(self, model: nn.Module) -> list[Assignment]:
        """Every site with its method, in the model's order."""
        assert isinstance(self.method, Method)
        sites = find(model, self.targets, self.exclude, self.layers, self.method.sites)
        whole = self._whole(model)
        inside = [a.site.name for a in whole if isinstance(a.site, ModuleSite)]
        whole = [a for a in whole if not any(a.site.name.startswith(i + ".") for i in inside)]
        named = {a.site.name for a in whole}
        sites = [s for s in sites if s.name not in named and not any(s.name.startswith(i + ".") for i in inside)]
        used: set[str] = set()
        out: list[Assignment] = []
        for site in sites:
            chosen = self._method_for(site.name, used)
            if chosen is not None:
                out.append(Assignment(site, chosen))
        for pattern in self.overrides:
            if pattern not in used and not any(matches(s.name, pattern) for s in sites):
                names = [s.name for s in sites]
                from .errors import nearest

                raise TargetError(
                    f"override '{pattern}' matches none of the {len(names)} sites{nearest(pattern, names)}"
                )
        if self.tie:
            _tie(out)
        _introduce(out)
        return out + whole

    def _method_for(self, name: str, used: set[str]) -> Method | None:
        assert isinstance(self.method, Method)
        for pattern, value in self.overrides.items():
            if matches(name, pattern):
                used.add(pattern)
                if value is None or isinstance(value, Method):
                    return value
                return change(self.method, dict(value))  # type: ignore[no-any-return]
        return self.method

    def _whole(self, model: nn.Module) -> list[Assignment]:
        out: list[Assignment] = []
        where = Candidates(model, "module")
        for pattern in self.train_modules:
            for name in _pick(where, "train_modules", pattern, literal=True):
                if not list(where.modules[name].parameters()):
                    raise TargetError(f"train_modules '{name}' has no parameters to train")
                out += [Assignment(site, METHODS["full"]()) for site in where.sites(name)]
        for pattern, ids in self.token_rows.items():
            for site in find(model, [pattern]):
                method = METHODS["trainable_tokens"](ids=tuple(ids))  # type: ignore[call-arg]
                out.append(Assignment(site, method))
                if self.tie:  # a tied head sees the same new rows
                    found = [leaf_site(n, m) for n, m in where.modules.items() if m is not site.module]
                    ends = [s for s in found if s is not None and s.parameter() is site.parameter()]
                    out += [Assignment(s, method, site.name, s.transposed != site.transposed) for s in ends]
        return out


def _ordered(overrides: dict[str, Any]) -> Any:
    """As a dict where its order is that of the alphabet, which files keep; else as pairs: the first pattern that fits wins."""
    return overrides if list(overrides) == sorted(overrides) else [[k, v] for k, v in overrides.items()]


def _introduce(assignments: list[Assignment]) -> None:
    """Sites of one method know each other by one list: a copy of the model then meets it once, and does not walk from peer to peer,
    deeper with every layer."""
    groups: list[tuple[Method, list[Site]]] = []
    for a in assignments:
        mine = next((sites for method, sites in groups if method == a.method), None)
        if mine is None:
            mine = []
            groups.append((a.method, mine))
        if a.shares is None:
            mine.append(a.site)
        a.site.peers = mine


def _tie(out: list[Assignment]) -> None:
    """The second end of a tied weight uses the first end's tensors: transposed if one of the two is a lookup."""
    first: dict[int, Assignment] = {}
    for a in out:
        parameter = a.site.parameter()
        if parameter is None:
            continue
        other = first.setdefault(id(parameter), a)
        if other is not a and other.site.module is not a.site.module and other.method == a.method:
            a.shares, a.flip = other.site.name, other.site.transposed != a.site.transposed


@dataclass(frozen=True)
class Preview:
    """What a plan would do to a model. Bytes are estimates from shapes; `tokens` is batch x length."""

    rows: list[dict[str, Any]]
    trainable: int
    frozen_extra: int
    base: int
    optimizer_bytes: int
    activation_bytes: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "share": self.trainable / max(self.base, 1)}

    def __str__(self) -> str:
        lines = [
            f"{r['name']:<48} {r['method']:<12} {r['kind']:<10} {r['shape']!s:<16} {r['trainable']:>10,}"
            for r in self.rows
        ]
        return "\n".join(
            [*lines, f"{len(self.rows)} sites, {self.trainable:,} trainable parameters "
             f"({100 * self.trainable / max(self.base, 1):.3f} % of {self.base:,}); optimiser state about "
             f"{self.optimizer_bytes / 1e6:.1f} MB; activations saved for the deltas about "
             f"{self.activation_bytes / 1e6:.1f} MB at {self.tokens} tokens"]
        )  # fmt: skip


def preview(model: nn.Module, plan: Plan, tokens: int = 1024) -> Preview:
    """Resolve a plan and add it up; the model is not touched.

    Optimiser bytes: what the update rule states of a matrix, two moments per trainable number otherwise, in float32 (codes of
    8-bit moments are not counted). Activation bytes: the input that each site must keep for
    the gradient of its right-most factor, once for sites that read the same input shape in the same block.
    """
    rows: list[dict[str, Any]] = []
    shared: dict[tuple[str, str], tuple[int, bool]] = {}
    activation = frozen = trainable = state = 0
    for a in plan.resolve(model):
        own, shapes = 0, dict[str, tuple[int, ...]]()
        if a.shares is None:
            for name, p in a.method.declare(a.site).items():
                if not isinstance(p, Param):
                    continue
                size = math.prod(p.shape)
                if p.scope != "site":
                    key = (p.scope, name)
                    shared[key] = (max(size, shared.get(key, (0, p.train))[0]), p.train)
                elif p.train:
                    own += size
                    shapes[name] = tuple(p.shape)
                else:
                    frozen += size
        trainable += own
        state += _state(plan.update, shapes, a.site.kind == "embedding")
        leaf = a.site.leaf().op
        shape = max(shapes.values(), key=math.prod, default=(0,)) if a.site.kind == "module" else tuple(a.site.shape)
        n = 0 if a.site.kind in ("embedding", "prefix") else shape[-1] if a.site.kind == "module" else leaf.shape[1]
        activation += tokens * n * leaf.like.element_size()
        rows.append(
            {"name": a.site.name, "method": a.method.key, "kind": a.site.kind, "shape": shape, "trainable": own,
             "tied_to": a.shares}
        )  # fmt: skip
    for size, train in shared.values():
        trainable, frozen, state = trainable + size * train, frozen + size * (not train), state + 2 * size * train
    base = sum(p.numel() for p in model.parameters())
    return Preview(rows, trainable, frozen, base, 4 * state, activation, tokens)


def _state(update: Any, shapes: dict[str, tuple[int, ...]], table: bool) -> int:
    """Numbers of optimiser state for the trained tensors of one site. Tables and what is no matrix are AdamW's."""
    stated, found = getattr(update, "floats", None), dict(shapes)
    numbers = 0
    if stated is not None and getattr(update, "pairs", False):
        A, B = (found.get(k, ()) for k in "AB")
        if len(A) == len(B) == 2 and A[0] == B[1]:
            numbers += stated(B[0], A[1], A[0])
            found = {k: v for k, v in found.items() if k not in ("A", "B")}
    elif stated is not None and not table:
        numbers += sum(stated(*v) for v in found.values() if len(v) == 2)
        found = {k: v for k, v in found.items() if len(v) != 2}
    return int(numbers + sum(2 * math.prod(v) for v in found.values()))


def as_plan(plan: Plan | Method | str) -> Plan:
    return plan if isinstance(plan, Plan) else Plan(plan)
