"""What a method is: its tensors (`Param`), its formula (`Method`), and the registries that everything is derived from."""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor

from .errors import ShapeError, SpecError, nearest
from .lowrank import signs
from .ops import Affine, Map, Op
from .ops import random as rng

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform as dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda f: f


T = TypeVar("T")


class NoTensor(SpecError, AttributeError):
    """A rule or an init asks for a tensor that the method at hand does not have."""


class Tensors:
    """A site's tensors by name, as attributes: `p.A`, `p.B`. `p.training` is the module's mode."""

    training: bool = False

    def __init__(self, training: bool = False, **tensors: Tensor):
        self.training = training
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Tensor:  # only reached when missing; typed so that `p.A` is a Tensor
        raise NoTensor(f"no tensor '{name}' at this site; it has {', '.join(sorted(self.names()))}")

    def names(self) -> list[str]:
        return [k for k in vars(self) if k != "training"]


class Start:
    """What an initialiser may look at: the site (name, kind, W) and its own stream of random numbers.

    Random numbers depend on (seed, site, tensor) only; a `Param` with a seed of its own has the same values at every
    site and in every model.
    """

    def __init__(self, name: str, kind: str, W: Op, seed: int = 0, method: Any = None):
        self.name, self.kind, self.W, self.seed, self.method = name, kind, W, seed, method
        self.p, self._key = Tensors(), 0
        self.own: list[str] | None = None  # which of p are this site's own (None: all); the others are shared by sites
        self._svd: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def at(self, tensor: str, seed: int | None) -> Start:
        """Point the random stream at one tensor."""
        self._key = rng.key(self.seed, self.name, tensor) if seed is None else rng.key("fixed", seed, tensor)
        return self

    def uniform(self, shape: tuple[int, ...], bound: float) -> Tensor:
        return rng.uniform(shape, self._key, -bound, bound)

    def normal(self, shape: tuple[int, ...], std: float) -> Tensor:
        return rng.normal(shape, self._key, std)

    def choose(self, count: int, total: int) -> Tensor:
        return rng.choose(count, total, self._key)

    def dense(self) -> Tensor:
        """W, at least float32."""
        w = self.W.dense().detach()
        return w.to(torch.promote_types(w.dtype, torch.float32))

    def room(self, r: int) -> None:
        """Raise the named error if W has no room for r directions."""
        if r > min(self.W.shape):
            m, n = self.W.shape
            raise ShapeError(
                f"{self.name}: r = {r} is more than a {m} x {n} weight has directions; use r <= {min(m, n)}"
            )

    def svd(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """(U, S, Vᵀ) of W cut at rank r; the entry of largest size in every column of U is positive."""
        self.room(r)
        if r not in self._svd:
            U, S, V = torch.linalg.svd(self.dense(), full_matrices=False)
            U, S, V = U[:, :r], S[:r], V[:r]
            sign = signs(U)
            self._svd[r] = (U * sign, S, sign[:, None] * V)
        return self._svd[r]


Fill = Callable[[Start, tuple[int, ...]], Tensor]


def zeros(_: Start, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape)


def ones(_: Start, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape)


def constant(value: float) -> Fill:
    return lambda _, shape: torch.full(shape, value)


def normal(std: float) -> Fill:
    return lambda start, shape: start.normal(shape, std)


def uniform(bound: float) -> Fill:
    return lambda start, shape: start.uniform(shape, bound)


def kaiming(start: Start, shape: tuple[int, ...]) -> Tensor:
    """Uniform on ±1/sqrt(fan-in): torch's default for a linear layer (`kaiming_uniform_` with a = sqrt 5)."""
    return start.uniform(shape, 1.0 / math.sqrt(max(shape[-1], 1)))


def by_kind(usual: Fill, **special: Fill) -> Fill:
    """Another start for some kinds of site: by_kind(zeros, embedding=normal(1.0))."""
    return lambda start, shape: special.get(start.kind, usual)(start, shape)


def last(fill: Fill) -> Fill:
    """Mark a start that reads other tensors of the site (`start.p`): it runs after them and after the init axis."""
    fill.last = True  # type: ignore[attr-defined]
    return fill


@dataclass(frozen=True)
class Param:
    """A tensor of a method. scope "site": one per site; any other word: one per model under that name, as large as the
    largest site wants, each site reading its leading slice. A seed makes it the same everywhere (and, when frozen,
    stored as a checksum only)."""

    shape: tuple[int, ...]
    init: Fill = zeros
    train: bool = True
    scope: str = "site"
    seed: int | None = None
    dtype: torch.dtype | None = None  # None: float32, or the base's dtype where that is wider
    free: int | None = None  # the axis whose length rules may change; a file that is loaded decides
    ruled: bool = False  # not trained, and yet no constant: rules move it


@dataclass(frozen=True)
class Signal:
    """A value of the current pass that a formula reads like a tensor, e.g. Signal("hidden") (see deltaw.signals)."""

    name: str


Declared = dict[str, Param | Signal]


class Method:
    """A frozen dataclass that is both the formula and its configuration. Implement `params` and `weight` (or `layer`)."""

    key: ClassVar[str]
    paper: ClassVar[str]
    axis: ClassVar[str]
    start: ClassVar[str]
    # "weight"; "stream": hidden states; "parallel": beside a block; "block": around one; "prefix": in front of a model;
    # "attention"; "module"; "norm"
    sites: ClassVar[str] = "weight"
    pointwise: ClassVar[bool] = True  # what it does to a token depends on that token and on signals alone
    # its rank-one terms: tensor -> the axis along which they are numbered; a term is live where its numbers on one axis are not 0
    slots: ClassVar[dict[str, int]] = {}

    def params(self, m: int, n: int) -> Declared:
        """The tensors at a site of shape m x n."""
        raise NotImplementedError

    def declare(self, site: Any) -> Declared:
        """The tensors at a site; only a method of whole modules looks further than at its shape."""
        return self.params(*site.shape)

    def weight(self, W: Op, p: Tensors) -> Op:
        """The new weight as an expression in the old one: the usual case."""
        raise SpecError(f"{self.key} has no weight(W, p): it acts on the whole layer")

    def layer(self, L: Affine, p: Tensors) -> Map:
        """The new layer; by default the new weight under the old bias."""
        return Affine(self.weight(L.op, p), L.bias)

    def live(self, p: Tensors) -> int | None:
        """How many of its terms are in use, where that is not to be seen from the gates (see `slots`)."""
        return None

    def rules(self) -> tuple[Any, ...]:
        """What has to happen between optimiser steps for this to be the method (see deltaw.methods.rules)."""
        return ()


class Registry(Generic[T]):
    """Names to things, with an error that offers the nearest names. `home`: the package whose import fills it."""

    every: ClassVar[list[Registry[Any]]] = []

    def __init__(self, what: str, home: str = ""):
        self.what, self.home, self._table = what, home, dict[str, T]()
        Registry.every.append(self)

    @property
    def table(self) -> dict[str, T]:
        if self.home:
            importlib.import_module(self.home)
        return self._table

    def __getitem__(self, key: str) -> T:
        if key not in self.table:
            others = [r.what for r in Registry.every if key in r._table]
            which = "".join(f", which is {'an' if w[0] in 'aeiou' else 'a'} {w}" for w in others)
            raise SpecError(
                f"no {self.what} '{key}'{which}{nearest(key, self.table)} (known: {', '.join(sorted(self.table))})"
            )
        return self.table[key]

    def __contains__(self, key: object) -> bool:
        return key in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.table))

    def add(self, key: str, item: T) -> None:
        if self._table.get(key, item) is not item:
            raise SpecError(f"two {self.what}s are called '{key}'")
        self._table[key] = item


def entry(registry: Registry[Any], paper: str, **marks: Any) -> Callable[[type[T]], type[T]]:
    """A decorator: the class becomes a frozen dataclass that is its own configuration, and is registered under its module's name."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper = cls.__module__.rsplit(".", 1)[-1], paper
        for name, value in marks.items():
            setattr(done, name, value)
        registry.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register


METHODS: Registry[type[Method]] = Registry("method", home="deltaw.methods")
RULES: Registry[Any] = Registry("rule", home="deltaw.methods")


@dataclass_transform(frozen_default=True)
def method(*, paper: str, start: str = "identity", claims: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register a Method. Its key is the name of its module, its axis the name of its folder.

    start: "identity" (bit for bit), "rounding" (identity up to rounding), or "none: WHY" for a method whose first
    output differs from the base's. claims: what its paper says, for the catalogue page.
    """

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        parts = cls.__module__.split(".")
        done.key, done.axis = parts[-1], parts[-2] if len(parts) > 1 else ""
        done.paper, done.start, done.claims = paper, start, claims
        METHODS.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register


# ---- configuration: a method (or init, or update) as a plain dict and back


def to_config(item: Any) -> dict[str, Any]:
    """{"key": ..., field: value, ...}; methods inside methods become dicts of the same form."""
    out: dict[str, Any] = {"key": item.key}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config(value)
        elif isinstance(value, tuple):
            value = list(value)
        out[field.name] = value
    return out


def from_config(config: Any, registry: Registry[Any] = METHODS) -> Any:
    """The inverse of `to_config`; a bare key means all defaults, and what is no configuration comes back as it is. Unknown
    fields are refused with the nearest names."""
    if isinstance(config, str):
        return build(registry[config], {})
    if not isinstance(config, dict):
        return config
    rest = dict(config)
    if "key" not in rest:
        raise SpecError(
            f"which {registry.what}? It is written {{'key': NAME, ...}}; found only {', '.join(sorted(rest)) or 'nothing'}"
        )
    cls = registry[rest.pop("key")]
    return build(cls, rest)


def build(cls: Any, values: dict[str, Any]) -> Any:
    """cls(**values) with checked names and types; a configuration inside it is one of `cls.registry` (methods, where it has none)."""
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise SpecError(
                f"{cls.key} has no field '{name}'{nearest(name, fields)} (fields: {', '.join(fields) or 'none'})"
            )
        if isinstance(value, dict) and "key" in value:
            value = from_config(value, getattr(cls, "registry", METHODS))
        ready[name] = _typed(cls.key, name, value, hints[name])
    empty = (dataclasses.MISSING, dataclasses.MISSING)
    if lacking := [n for n, f in fields.items() if n not in ready and (f.default, f.default_factory) == empty]:
        raise SpecError(
            f"{cls.key} needs {' and '.join(lacking)}: {{'key': '{cls.key}', {', '.join(f'{n!r}: ...' for n in lacking)}}}"
        )
    return cls(**ready)


def _typed(where: str, name: str, value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        kind = get_origin(option) or option
        if kind is type(None) and value is None:
            return None
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(value)
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind is Method and isinstance(value, str):
            return METHODS[value]()
        if get_origin(option) is None and isinstance(kind, type) and isinstance(value, kind):
            if not (isinstance(value, bool) and kind is int):
                return value
        if str(kind) == "typing.Literal" and value in get_args(option):
            return value
    if all(str(get_origin(o)) == "typing.Literal" for o in options):
        allowed = [a for o in options for a in get_args(o)]
        raise SpecError(f"{where}.{name} must be one of {allowed}; found {value!r}")
    raise SpecError(
        f"{where}.{name} must be {hint if len(options) > 1 else getattr(hint, '__name__', hint)}; found {value!r}"
    )


def change(item: Any, values: dict[str, Any]) -> Any:
    """A copy with other field values; a field the item lacks is looked for in the methods it wraps."""
    own = {f.name for f in dataclasses.fields(item)}
    mine = {k: v for k, v in values.items() if k in own}
    rest = {k: v for k, v in values.items() if k not in own}
    config = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)} | mine
    if rest:
        inner = [f for f in own if isinstance(getattr(item, f), Method) and f not in mine]
        if not inner:
            build(type(item), rest)  # raises, naming the nearest field
        config[inner[0]] = change(getattr(item, inner[0]), rest)
    return build(type(item), config)


def layers_of(method: Method) -> Iterator[Method]:
    """A method and those it wraps, from the outside in."""
    yield method
    for f in dataclasses.fields(method):  # type: ignore[arg-type]
        if isinstance(inner := getattr(method, f.name), Method):
            yield from layers_of(inner)


def scale_of(item: Any) -> float:
    """The constant s of y = W x + s B A x, through wrappers; 1 where a method has none."""
    if hasattr(item, "scale"):
        return float(item.scale)
    inner = [v for f in dataclasses.fields(item) if isinstance(v := getattr(item, f.name), Method)]
    return scale_of(inner[0]) if inner else 1.0
