"""Oracles: what a method computes according to others. One file per method; see `closed` and `peft` below.

`oracles/KEY.py` may define
  METHOD or METHODS                    instances small enough for layers of 24 x 16 and 16 x 16; laws run on them too
  closed(method, W, b, p, x) -> y      the paper's formula in plain torch, sharing no code with the method
                                       (of a prompt: closed(method, table, p) -> {"tokens": ..., "kv": ...})
  peft(method) -> (config, put)        the same in HF PEFT: put(layer, p) copies our tensors in and returns, per tensor
                                       of ours, a function that gives its gradient in our layout
  PEFT_BASE = torch.float32            where PEFT refuses a float64 base: it is wrapped in this dtype, then widened
  peft_config(method) -> config        only that configuration, where peft() cannot be given: for what PEFT can do with it
  IN_PEFT = True / False               where having peft() does not tell: PEFT has the method, but one linear layer
                                       cannot show it; or only a part of PEFT serves as the judge
A package of its own registers its methods' oracles with `declare(key, module)`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ... import attach
from ...errors import SpecError, need
from ...plan import Plan
from ...spec import METHODS, Method
from ..laws.base import Case, close, must, opened, push
from ..tiny import WIDTH, TinyNorm, settle, values

SHAPES = ((24, 16, True), (16, 16, False))  # m, n, bias
PEFT_TOLERANCE = 2e-6  # in float64: some of PEFT's layers pass through float32

_declared: dict[str, Any] = {}


def declare(key: str, oracle: ModuleType | Any) -> None:
    """Supply the oracle of a method that lives in another package."""
    _declared[key] = oracle


def oracle(key: str) -> Any:
    """The oracle module of a method, or None."""
    if key not in _declared and key in {m.name for m in pkgutil.iter_modules(__path__)}:
        _declared[key] = importlib.import_module(f"{__name__}.{key}")
    return _declared.get(key)


def declared(key: str) -> list[str]:
    """Which of "closed" and "peft" there are for a method."""
    found = oracle(key)
    return [word for word in ("closed", "peft") if hasattr(found, word)]


def instances(cls: type[Method]) -> list[Method]:
    """The method at the oracle's small sizes; without any, its defaults with every size above 4 halved until it fits."""
    found = oracle(cls.key)
    many = getattr(found, "METHODS", None) or ([found.METHOD] if hasattr(found, "METHOD") else [])
    return list(many) or [shrunk(cls())]


def shrunk(method: Any) -> Any:
    """Sizes (integer fields) halved down to 4 at most, also inside wrapped methods."""
    change: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Method):
            change[field.name] = shrunk(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 4 and "seed" not in field.name:
            while value > 4:
                value //= 2
            change[field.name] = value
    return dataclasses.replace(method, **change)


def _weighed(y: Tensor) -> Tensor:
    return (y * values(*y.shape, name="weighed", dtype=y.dtype)).sum()


def compare_closed(method: Method) -> str:
    """Output, gradient of the input and of every trained tensor against the closed form, in float64, at both shapes."""
    closed = oracle(method.key).closed
    case = Case(method)
    if method.sites == "prefix":
        return compare_prompt(method, closed)
    if method.sites == "block":
        return compare_blocks(method, closed)
    for m, n, bias in SHAPES:
        model, x = case.one(m, n, bias), case.x(3, 5, n).requires_grad_()
        lin = model.blocks[0]
        W, b = (None if (t := getattr(lin, word, None)) is None else t.detach().clone() for word in ("weight", "bias"))
        adapted = case.attach(model)
        _, entry, signals = opened(adapted, x.detach())[0]
        ours, pool = {k: entry.get(k) for k in entry.own}, adapted.pool()
        ours |= {k: pool.get(key) for k, (key, _) in entry.shared.items()} if pool is not None else {}
        p = {k: t.detach().clone().requires_grad_(t.requires_grad) for k, t in ours.items()}
        p |= {k: signals[s] for k, s in entry.signals.items()}
        y = model(x)
        z = x.detach().clone().requires_grad_()
        if method.sites == "attention":  # added to what the layer gives anyway
            want = type(lin).forward(lin, z) + closed(method, lin, p, z)
        elif method.sites == "stream":  # the map acts on what the block puts out; its base is the identity
            h = nn.functional.linear(z, W, b)
            want = closed(method, torch.eye(m, dtype=z.dtype), None, p, h)
        else:
            want = closed(method, W, b, p, z)
        where = f"{m} x {n}"
        close(f"{where} output", y, want, 1e-10)
        _weighed(y).backward()
        _weighed(want).backward()
        if not signals:  # a signal is itself a function of the input, cut from the graph on our side only
            assert x.grad is not None and z.grad is not None
            close(f"{where} gradient of the input", x.grad, z.grad, 1e-9)
        for name, t in ours.items():
            if t.requires_grad:
                got, exact = t.grad, p[name].grad
                must(got is not None and exact is not None, f"{where}: {name} has no gradient in one of the two")
                assert got is not None and exact is not None
                close(f"{where} gradient of {name}", got, exact, 1e-9)
    return "closed form"


def compare_prompt(method: Method, closed: Any) -> str:
    """What stands in front of a text, `closed(method, table, p) -> {"tokens": ..., "kv": ...}`, and what a tiny language
    model makes of it when it is told so by hand, against the adapted one."""
    case = Case(method)
    for m, n, _ in SHAPES:
        model, x = case.one(m, n), case.x(3, 5, n).requires_grad_()
        adapted = case.attach(model)
        (_, entry, signals), *_rest = opened(adapted, x.detach())
        p = {k: t.detach().clone().requires_grad_(t.requires_grad) for k, t in entry.named()}
        given = p | {k: signals[s] for k, s in entry.signals.items()}
        y, z = model(x), x.detach().clone().requires_grad_()
        want = model.told(z, **closed(method, model.body.table.weight, given))
        where = f"{m} x {n}"
        close(f"{where} output", y, want, 1e-10)
        _weighed(y).backward()
        _weighed(want).backward()
        assert x.grad is not None and z.grad is not None
        close(f"{where} gradient of the input", x.grad, z.grad, 1e-9)
        for name, t in p.items():
            if t.requires_grad:
                got = entry.get(name).grad
                must(got is not None and t.grad is not None, f"{where}: {name} has no gradient in one of the two")
                close(f"{where} gradient of {name}", got, t.grad, 1e-9)  # type: ignore[arg-type]
    return "closed form"


def compare_blocks(method: Method, closed: Any) -> str:
    """What rides from block to block, over a whole tiny model: `closed(method, blocks, [p of each], x)` is its output."""
    case = Case(method)
    model, x = case.tiny(), case.x(3, 5, WIDTH).requires_grad_()
    plain, z = copy.deepcopy(model), x.detach().clone().requires_grad_()
    adapted = case.attach(model)
    p = [{k: t.detach().clone().requires_grad_() for k, t in entry.named()} for _, entry, _ in opened(adapted, x.detach())]
    y, want = model(x), closed(method, plain.blocks, p, z)
    close("output", y, want, 1e-10)
    _weighed(y).backward()
    _weighed(want).backward()
    assert x.grad is not None and z.grad is not None
    close("gradient of the input", x.grad, z.grad, 1e-9)
    for own, (_, entry, _) in zip(p, opened(adapted, x.detach())):
        for name, t in own.items():
            got = entry.get(name).grad
            must(got is not None and t.grad is not None, f"{name} has no gradient in one of the two")
            close(f"gradient of {name}", got, t.grad, 1e-9)  # type: ignore[arg-type]
    return "closed form"


class Net(nn.Module):
    """What both libraries adapt: one linear layer, or a norm, called `lin`."""

    def __init__(self, m: int, n: int, bias: bool, norm: bool = False):
        super().__init__()
        self.lin = TinyNorm(n, bias=bias) if norm else nn.Linear(n, m, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


def compare_peft(method: Method) -> str:
    """The same against HF PEFT with our tensors copied in."""
    peft = need("peft", "peft")
    case = Case(method)
    for m, n, bias in SHAPES:
        model = settle(Net(m, n, bias, method.sites == "norm"), torch.float64)
        config, put = oracle(method.key).peft(method)
        narrow = getattr(oracle(method.key), "PEFT_BASE", None)
        base = copy.deepcopy(model).to(narrow or torch.float64)
        theirs = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
        if narrow is not None:  # what was rounded for PEFT; where it changed its base itself, that stays
            for t, exact in zip(theirs.base_model.model.lin.get_base_layer().parameters(), model.lin.parameters(), strict=True):
                t.data.copy_(exact)
        adapted = attach(model, Plan(method, targets=["lin"]))
        push(adapted)
        _, entry, signals = opened(adapted, case.x(2, n))[0]
        p = entry.tensors(signals)
        ours = {k: getattr(p, k) for k in p.names() if k not in entry.signals}
        gradients = put(theirs.base_model.model.lin, {k: t.detach().clone() for k, t in ours.items()})
        x = case.x(3, 5, n).requires_grad_()
        z = x.detach().clone().requires_grad_()
        y, want = model(x), theirs(z)
        where = f"{m} x {n}"
        close(f"{where} output", y, want, PEFT_TOLERANCE)
        _weighed(y).backward()
        _weighed(want).backward()
        assert x.grad is not None and z.grad is not None
        close(f"{where} gradient of the input", x.grad, z.grad, PEFT_TOLERANCE)
        pool = adapted.pool()
        for name in ours:
            own = entry.get(name) if name in entry.own else pool.get(entry.shared[name][0])  # type: ignore[union-attr]
            if own.requires_grad:
                must(name in gradients, f"put() gives no gradient for {name}")
                close(f"{where} gradient of {name}", own.grad, gradients[name](), PEFT_TOLERANCE)
    return f"PEFT {peft.__version__}"


COMPARE = {"closed": compare_closed, "peft": compare_peft}


def check_keys() -> None:
    """Every oracle file belongs to a method."""
    for found in pkgutil.iter_modules(__path__):
        if found.name not in METHODS:
            raise SpecError(f"testing/oracles/{found.name}.py is an oracle for no method")
