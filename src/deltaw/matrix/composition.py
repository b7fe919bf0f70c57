"""Every method of weights x what it can be composed with: each wrapper, each init, a quantised base, overrides."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import NotMergeable, SpecError
from ..files import load
from ..methods.init import INITS, measured
from ..ops import Affine
from ..spec import METHODS, Method
from ..testing.laws import Case
from ..testing.laws.base import close, gap, must, opened, push, same
from ..testing.oracles import instances
from ..testing.tiny import WIDTH, Tiny, coded, settle, values
from .cells import Cell, first


@dataclasses.dataclass(frozen=True)
class Mix:
    """A method, how its plan is filled, and the base it stands on."""

    method: Method
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantised: bool = False
    identity: bool = True

    @property
    def tol(self) -> float:
        return 1e-4 if self.quantised else 1e-9

    @property
    def dtype(self) -> torch.dtype:
        """A layer of codes has adapters in float32, and is used with activations of that width at most."""
        return torch.float32 if self.quantised else torch.float64

    def model(self) -> Any:
        model = settle(Tiny(), self.dtype)
        return coded(model).eval() if self.quantised else model


def inner_of(method: Method) -> str | None:
    """The field by which a wrapper holds the method that it wraps."""
    return next((f.name for f in dataclasses.fields(method) if "Method" in str(f.type)), None)  # type: ignore[arg-type]


def is_identity(method: Method) -> bool:
    """By what it and all it wraps declare."""
    field = inner_of(method)
    inner = None if field is None else getattr(method, field)
    return method.start in ("identity", "rounding") and (inner is None or is_identity(inner))


def wrapped(key: str) -> Callable[[Method], Mix]:
    def make(method: Method) -> Mix:
        outer = instances(METHODS[key])[0]
        field = inner_of(outer)
        assert field is not None
        both = dataclasses.replace(outer, **{field: method})  # type: ignore[type-var]
        return Mix(both, identity=is_identity(both))

    return make


def overridden(method: Method) -> Mix:
    """One number smaller at half of the sites; a method without numbers is left out there."""
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    tries: list[Any] = [{k: v // 2} for k, v in fields.items() if type(v) is int and v > 1 and "seed" not in k]
    tries += [{k: v / 2} for k, v in fields.items() if type(v) is float]
    refused: list[SpecError] = []
    for values_ in tries:
        mix = Mix(method, {"overrides": {"up": values_}}, identity=is_identity(method))
        try:
            Case(method).attach(mix.model(), **mix.plan)
            return mix
        except SpecError as why:
            refused.append(why)
    if refused:
        raise refused[0]
    return Mix(method, {"overrides": {"up": None}}, identity=is_identity(method))


def columns() -> dict[str, Callable[[Method], Mix]]:
    """What there is to compose with: from the registries."""
    wrappers = [k for k in METHODS if METHODS[k].sites == "weight" and inner_of(METHODS[k]()) is not None]
    inits = [k for k in INITS if not measured(INITS[k])]  # what needs data is no property of a pair
    return {
        **{f"in {k}": wrapped(k) for k in wrappers},
        **{f"init {k}": lambda m, k=k: Mix(m, {"init": k}, identity=is_identity(m)) for k in inits},  # type: ignore[misc]
        "quantised": lambda m: Mix(m, quantised=True, identity=is_identity(m)),
        "overrides": overridden,
    }


def prove(mix: Mix, deep: bool = False) -> str | None:
    """First output, forward = affine map of the dense matrix, gradients, merge; deep: files too."""
    case, model, x = Case(mix.method, mix.dtype), mix.model(), values(3, 5, WIDTH, name="x", dtype=mix.dtype)
    base = model(x)
    adapted = case.attach(model, move=False, **mix.plan)
    if mix.identity:
        close("the first output against the base's", model(x), base, mix.tol)
    push(adapted)
    y, notes = model(x), list[str]()
    must(gap(y, base) > 0, "no effect")
    for a, entry, signals in opened(adapted, x):
        L = entry.layer(a.site.leaf(), signals)
        if isinstance(L, Affine):
            h = values(7, L.op.shape[1], name="h", dtype=mix.dtype)
            close(a.site.name, L(h), h @ L.op.dense().mT.to(h.dtype) + (0 if L.bias is None else L.bias), mix.tol)
        else:
            notes = ["no linear map"]
    if adapted.trainable():
        y.square().sum().backward()
    dead = [n for n, p in adapted.trainable().items() if p.grad is None or not p.grad.any()]
    must(not dead, f"no gradient for {dead}")
    try:
        close("merged", adapted.merge(probe=x).model()(x), y, mix.tol)
    except NotMergeable as why:
        notes.append(f"without merging: {why}")
    if deep:
        with tempfile.TemporaryDirectory() as folder:
            adapted.save(folder)
            again = mix.model()
            load(again, folder)
            same("loaded", again(x), y)
    adapted.detach()
    same("detached", model(x), base)
    return ", ".join(notes) or None


def compositions(keys: Iterable[str] | None = None, deep: bool = False) -> dict[str, dict[str, Cell]]:
    """{key: {column: Cell}} for these methods, or for all that act on weights."""
    chosen = [k for k in (METHODS if keys is None else keys) if METHODS[k].sites == "weight"]
    return {k: {name: one(k, name, deep) for name in columns()} for k in chosen}


def one(key: str, column: str, deep: bool = False) -> Cell:
    """A single pair."""
    many = [v for m in instances(METHODS[key]) for v in (m, even(m))]
    return first(dict.fromkeys(many), lambda m: prove(columns()[column](m), deep))


def even(method: Method) -> Method:
    """The same with every odd size one larger: some starts come in pairs."""
    sizes = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    more = {k: v + 1 for k, v in sizes.items() if type(v) is int and v > 1 and v % 2 and "seed" not in k}
    more |= {k: even(v) for k, v in sizes.items() if isinstance(v, Method)}
    return dataclasses.replace(method, **more)  # type: ignore[type-var]


__all__ = ["columns", "compositions", "one", "prove"]
