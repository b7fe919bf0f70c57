"""Laws of several adapters on one model: they add, they take turns within a batch, they leave no trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deltaw

from ...errors import SpecError
from .base import Case, NotApplicable, close, law, must, opened, same


def _two(case: Case, model: Any) -> None:
    for k, name in enumerate(("a", "b")):
        case.attach(model, name, seed=k)


def _alone(model: Any, x: Tensor, name: str | None) -> Tensor:
    if name is None:
        with deltaw.disabled(model):
            return model(x)  # type: ignore[no-any-return]
    with deltaw.activate(model, name):
        return model(x)  # type: ignore[no-any-return]


@law()
def two_adapters_add(case: Case) -> None:
    """At one site the output of [a, b] is the base's plus both changes; weights scale them; 0 is none of it. Prompts
    stand one behind the other instead, and have no weight but 1 and 0."""
    model, x = case.one(), case.x()
    _two(case, model)
    if case.method.sites == "prefix":
        return _behind(model, x)
    if case.method.sites == "block":
        raise NotApplicable("what it adds goes through a block, which is no linear map")
    base, a, b = (_alone(model, x, n) for n in (None, "a", "b"))
    with deltaw.activate(model, ["a", "b"]):
        close("a + b", model(x), a + b - base, case.tol)
    with deltaw.activate(model, ["a", "b"], [0.5, -2.0]):
        close("a / 2 - 2 b", model(x), base + 0.5 * (a - base) - 2.0 * (b - base), case.tol)
    with deltaw.activate(model, ["b"], [0.0]):
        close("0 b", model(x), base, case.tol)
    with deltaw.activate(model, ["a"], [torch.tensor(0.5, dtype=case.dtype)]):
        close("a tensor as weight", model(x), base + 0.5 * (a - base), case.tol)


def _behind(model: Any, x: Tensor) -> None:
    found = {}
    for adapted in deltaw.adapters(model):
        (a, entry, signals), *_ = opened(adapted, x)
        L: Any = entry.layer(a.site.leaf(), signals)
        found[adapted.name] = (L.tokens, L.kv)
    for first, second in (("a", "b"), ("b", "a")):
        tokens, kv = (None if t is None else torch.cat([one(t), one(u)]) for t, u in zip(found[first], found[second]))
        with deltaw.activate(model, [first, second]):
            close(f"{first}, then {second}", model(x), model.told(x, tokens, kv), 1e-10)
    with deltaw.activate(model, ["a", "b"], [1.0, 0.0]):
        close("a and 0 b", model(x), _alone(model, x, "a"), 1e-10)
    with deltaw.activate(model, ["a"], [0.0]):
        close("0 a", model(x), _alone(model, x, None), 1e-10)
    try:
        with deltaw.activate(model, ["a"], [0.5]):
            model(x)
    except SpecError:
        return
    must(False, "half a prompt was accepted")


def one(t: Tensor) -> Tensor:
    """A prompt that is given for rows, but the same for all of them."""
    return t[0] if t.dim() == 3 else t


@law()
def rows_take_turns(case: Case) -> None:
    """In a mixed batch every row gives what it gives alone, with its adapter or none, with gradients too."""
    model, x = case.tiny(), case.x(4, 5, 16)
    _two(case, model)
    names = ["a", None, "b", "a"]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want = torch.cat([_alone(model, x[k : k + 1], n) for k, n in enumerate(names)])
            with deltaw.rows(model, names):
                close("rows", model(x), want, case.tol)
                if not grad:
                    close("rows, second call", model(x), want, case.tol)
    if not want.requires_grad:  # nothing of it is trained
        return
    grads: list[dict[str, Tensor]] = []
    for mixed in (True, False):
        with deltaw.rows(model, names) if mixed else deltaw.activate(model, "a"):
            (model(x) if mixed else want).square().sum().backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        grads.append({n: g.clone() for n, g in found.items()})
        model.zero_grad()
    must(set(grads[0]) == set(grads[1]), f"gradients reach {sorted(set(grads[0]) ^ set(grads[1]))} in one way only")
    for name, g in grads[0].items():
        close(name, g, grads[1][name], 1e-9)


@law()
def leaving_in_any_order(case: Case) -> None:
    """Detaching one of two leaves the other as it was; detaching both leaves the base."""
    for first, second in (("a", "b"), ("b", "a")):
        model, x = case.tiny(), case.x()
        keys, base = list(model.state_dict()), model(x)
        _two(case, model)
        kept = _alone(model, x, second)
        by = {a.name: a for a in deltaw.adapters(model)}
        by[first].detach()
        same("the other one", _alone(model, x, second), kept)
        by[second].detach()
        same("the base", model(x), base)
        must(list(model.state_dict()) == keys, "keys were left behind")
