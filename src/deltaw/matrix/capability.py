"""Every method x what one may want to do with it, each tried on tiny layers of 24 x 16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import attach, blend
from ..errors import NotLinear, NotMergeable
from ..plan import Plan
from ..spec import METHODS, Method
from ..testing.laws import LAWS, Case, NotApplicable
from ..testing.laws.base import close, gap, must, push, same
from ..testing.oracles import instances
from ..testing.tiny import WIDE, WIDTH, Around, Codes, Conv1D, Experts, Lookup, One, answer, coded, settle, values
from .cells import Cell, first

F64 = torch.float64


class Picture(nn.Module):
    """A single nn.Conv2d `blocks.0`, whose kernel is a map of 24 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(WIDTH // 4, WIDE, 2)])

    def forward(self, x: Tensor, **kw: Any) -> Any:
        return answer(self.blocks[0](x), x.flatten(2).mT, kw)


PLACES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Linear": (One, "blocks.0"),
    "Conv1D": (lambda: Around(Conv1D(WIDE, WIDTH)), "blocks.0"),
    "Conv2d": (Picture, "blocks.0"),
    "Embedding": (Lookup, "blocks.0"),
    "experts": (lambda: Around(Experts(WIDE, WIDTH)), "blocks.0.stack"),
}


SINGLE = ("weight", "stream", "module", "parallel", "norm")
"""The sorts of site that a single layer can be."""


def inputs(model: nn.Module) -> Tensor:
    if isinstance(model, Lookup):
        return torch.arange(12).reshape(4, 3)
    shape = (2, WIDTH // 4, 5, 4) if isinstance(model, Picture) else (4, 3, WIDTH)
    return values(*shape, name="x", dtype=F64)


def at(method: Method, kind: str) -> str | None:
    """On that kind of layer: an effect, gradients everywhere, the merged weight the same, and the base back afterwards."""
    if method.sites not in SINGLE:
        raise NotApplicable(f"acts on a {method.sites} of the model, which is there whatever kind its layers are of")
    make, target = PLACES[kind]
    model = settle(make(), F64)
    model.config = SimpleNamespace(hidden_size=WIDE)
    x, targets = inputs(model), [target if method.sites == "weight" else "blocks.0"]
    base = model(x)
    adapted = attach(model, Plan(method, targets=targets))
    push(adapted)
    y, note = model(x), None
    must(gap(y, base) > 0, "the adapter has no effect")
    if adapted.trainable():  # a router without training has nothing
        y.square().sum().backward()
    dead = [n for n, p in adapted.trainable().items() if p.grad is None or not p.grad.any()]
    must(not dead, f"no gradient for {dead}")
    try:
        close("merged", adapted.merge(probe=x).model()(x), y, 1e-10)
    except NotMergeable:
        note = "without merging"
    adapted.detach()
    same("detached", model(x), base)
    return note


def both(method: Method, model: Any = None) -> tuple[Any, Any]:
    """A single layer with two adapters "a" and "b" of the method."""
    case = Case(method)
    model = case.one() if model is None else model
    return model, [case.attach(model, name, seed=k) for k, name in enumerate("ab")]


def several(method: Method) -> str | None:
    return LAWS["two_adapters_add"].run(Case(method))


def weighted(method: Method) -> str | None:
    """The weighted sum, live, and then as one thing."""
    several(method)
    model, _ = both(method)
    x = values(3, 5, WIDTH, name="x")
    y, sum_ = model_of(model, x), blend(model, ["a", "b"], [0.5, -2.0])
    try:
        close("merged", sum_.merge(probe=x).model()(x), y, 1e-10)
    except NotMergeable as why:
        return f"live only: {why}"
    try:
        return f"live, merged, or as one LoRA of rank {sum_.to_lora().rank}"
    except NotLinear as why:
        return f"live or merged, not as one exact LoRA: {why}"


def model_of(model: Any, x: Tensor) -> Tensor:
    from ..attach import activate

    with activate(model, ["a", "b"], [0.5, -2.0]):
        return model(x)  # type: ignore[no-any-return]


def rows(method: Method) -> str | None:
    return LAWS["rows_take_turns"].run(Case(method))


def merge(method: Method) -> str | None:
    model, x = Case(method).one(), values(3, 5, WIDTH, name="x")
    adapted = Case(method).attach(model)
    close("merged", adapted.merge(probe=x).model()(x), model(x), 1e-10)
    return None


def exact_lora(method: Method) -> str | None:
    """A plain LoRA that gives the same."""
    case = Case(method)
    model, x = case.one(), values(3, 5, WIDTH, name="x")
    adapted = case.attach(model)
    y = model(x)
    made = adapted.to_lora()
    adapted.detach()
    with torch.no_grad():
        for name, (B, A) in made.factors.items():
            model.get_submodule(name).weight += B @ A
    close("plain LoRA", model(x), y, 1e-10)
    return f"rank {made.rank}"


def cut_lora(method: Method) -> str | None:
    """The best one of rank 2, with its error."""
    made = Case(method).attach(Case(method).one()).to_lora(rank=2)
    must(all(0 <= e < 1 for e in made.error.values()), f"errors of a cut at rank 2: {made.error}")
    return f"error {max(made.error.values()):.2f} at rank 2"


def quantised(method: Method) -> str | None:
    """On a layer that shows no weight, in float32 as its adapters are: the same as on the weight it stands for."""
    case = Case(method, torch.float32)
    x, shown, hidden = case.x(), case.one(), coded(case.one()).eval()
    codes = {name: layer for name, layer in hidden.named_modules() if isinstance(layer, Codes)}
    if not codes:
        raise NotApplicable(f"acts on a {method.sites}, and there is no linear layer in it whose weight could be stored as codes")
    with torch.no_grad():
        for name, layer in codes.items():
            shown.get_submodule(name).weight.copy_(layer.decode())
    close("base", hidden(x), shown(x), 1e-5)
    ours, theirs = (case.attach(model).trainable() for model in (hidden, shown))
    if set(ours) != set(theirs):  # whole modules: what a layer of codes has to train is something else
        hidden(x).square().sum().backward()
        dead = [n for n, p in ours.items() if p.grad is None or not p.grad.any()]
        must(not dead, f"no gradient for {dead}")
        return f"trains {', '.join(n.rpartition('.')[2] for n in ours)} of the layer, not its codes"
    close("adapted", hidden(x), shown(x), 1e-4)
    return None


COLUMNS: dict[str, Callable[[Method], str | None]] = {
    "several": several,
    "rows": rows,
    "merge": merge,
    "exact LoRA": exact_lora,
    "cut LoRA": cut_lora,
    "weighted sum": weighted,
    "quantised": quantised,
    **{kind: (lambda method, kind=kind: at(method, kind)) for kind in PLACES},
}
"""several: adapters live at once. rows: one each in a mixed batch. exact LoRA, cut LoRA: conversion, as it is or at a
lower rank. weighted sum: with any weights.
quantised: a base layer whose weight is stored as codes. The others: kinds of layer."""


def row(cls: type[Method]) -> dict[str, Cell]:
    many = instances(cls)
    return {name: first(many, lambda m, run=run: run(copy.copy(m))) for name, run in COLUMNS.items()}  # type: ignore[misc]


def capabilities(keys: Iterable[str] | None = None) -> dict[str, dict[str, Cell]]:
    """{key: {column: Cell}} for these methods, or all."""
    return {key: row(METHODS[key]) for key in (METHODS if keys is None else keys)}


__all__ = ["COLUMNS", "capabilities", "row"]
