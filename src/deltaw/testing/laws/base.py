"""What a law is, and the bench it runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import attach
from ...attach import Adapted
from ...ops import Affine, Map, Op
from ...plan import Plan
from ...spec import Method, Param
from ..tiny import WIDE, WIDTH, Around, Attention, Lookup, One, Reader, Tiny, settle, values

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


class LawBroken(AssertionError):
    """A law does not hold; the message gives the numbers."""


class NotApplicable(Exception):
    """A law says nothing about this method; the message is the mathematical reason."""


@dataclass(frozen=True)
class Law:
    """`run(case)` returns a note (or None), raises LawBroken or NotApplicable."""

    name: str
    run: Callable[[Case], str | None]
    dtypes: tuple[torch.dtype, ...]

    @property
    def doc(self) -> str:
        return (self.run.__doc__ or "").strip()


LAWS: dict[str, Law] = {}


def law(*dtypes: torch.dtype) -> Callable[[Callable[[Case], str | None]], Callable[[Case], str | None]]:
    """Register a law under its function's name, to be run in these dtypes (float64 by default)."""

    def register(f: Callable[[Case], str | None]) -> Callable[[Case], str | None]:
        LAWS[f.__name__] = Law(f.__name__, f, dtypes or (F64,))
        return f

    return register


def must(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise LawBroken(message)


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of b (or to 1e-30)."""
    must(a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    off = float((a - b).abs().max())
    return off / max(float(b.abs().max()), 1e-30) if off else off  # nan stays nan


def close(what: str, a: Tensor, b: Tensor, tol: float) -> None:
    off = gap(a, b)
    must(off <= tol, f"{what}: relative difference {off:.2e} > {tol:.0e}")


def same(what: str, a: Tensor, b: Tensor) -> None:
    must(
        a.dtype == b.dtype and torch.equal(a, b), f"{what}: not bit for bit equal (relative difference {gap(a, b):.2e})"
    )


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    h = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


@dataclass(frozen=True)
class Case:
    """One method in one dtype: everything a law needs to build its experiment, always from the same numbers."""

    method: Method
    dtype: torch.dtype = F64

    # ---- models and inputs

    def tiny(self) -> Any:
        prompt = self.method.sites in ("prefix", "attention")
        return settle(Reader() if prompt else Tiny(norm=self.method.sites == "norm"), self.dtype)

    def one(self, m: int = WIDE, n: int = WIDTH, bias: bool = True) -> Any:
        if self.method.sites == "prefix":  # one layer, n numbers a token, m numbers of keys and values a place
            return settle(Reader(n, 1, m // 2), self.dtype)
        if self.method.sites == "block":  # what rides from block to block needs two of them
            return settle(Tiny(n, max(m, n)), self.dtype)
        if self.method.sites == "attention":  # nothing but the layer
            return settle(Around(Attention(n, m // 2)), self.dtype)
        return settle(One(m, n, bias, norm=self.method.sites == "norm"), self.dtype)

    def lookup(self) -> Any:
        return settle(Lookup(), self.dtype)

    def x(self, *shape: int, name: str = "x") -> Tensor:
        return values(*(shape or (3, 5, WIDTH)), name=name, dtype=self.dtype)

    # ---- attaching

    def plan(self, model: nn.Module, **kw: Any) -> Plan:
        """The method on every site of the tiny model it has: all linears, all blocks, or whole modules."""
        if self.method.sites in ("stream", "parallel", "block"):
            kw.setdefault("targets", "all-blocks")
        elif self.method.sites == "norm":
            kw.setdefault("targets", "all-norms")
        elif self.method.sites in ("prefix", "attention"):
            kw.setdefault("targets", "all-blocks")  # the backbone that holds them
        elif self.method.sites == "module":
            kw.setdefault("targets", ["sq"] if isinstance(model, Tiny) else ["blocks.0"])
        else:
            kw.setdefault("targets", "all-linear" if not isinstance(model, Lookup) else ["blocks.0"])
        return Plan(self.method, **kw)

    def attach(self, model: nn.Module, name: str = "default", *, move: bool = True, **kw: Any) -> Adapted:
        """Attach, and (move) push what is trained, or moved by rules, off its start by noise that depends on the adapter's
        name."""
        adapted = attach(model, self.plan(model, **kw), name)
        if move:
            push(adapted)
        return adapted

    # ---- looking inside

    def layers(self, adapted: Adapted, x: Tensor) -> list[tuple[Any, Map, Op]]:
        """(site, the map of the adapter there, the base it is made of) with the signals of a pass over x."""
        out = []
        for a, entry, signals in opened(adapted, x):
            base = a.site.leaf()
            out.append((a.site, entry.layer(base, signals), base.op))
        return out

    def affine(self, adapted: Adapted, x: Tensor) -> list[tuple[Any, Affine, Op]]:
        """(site, Affine, W) for every site, or NotApplicable where the method is no linear map."""
        found = []
        for site, L, W in self.layers(adapted, x):
            if not isinstance(L, Affine):
                raise NotApplicable(f"{type(L).__name__} is no linear map: {why_not(adapted, L)}")
            found.append((site, L, W))
        return found

    @property
    def tol(self) -> float:
        return {F64: 1e-10, F32: 1e-5, BF16: 2e-2}[self.dtype]


def why_not(adapted: Adapted, L: Map) -> str:
    if any(e.signals for e in adapted.entries().values()):
        return "it depends on a value computed from the whole input"
    if next(iter(adapted.assignments)).site.kind in ("prefix", "attention"):
        return "it is what the input is seen with, no product"
    if next(iter(adapted.assignments)).site.kind == "module":
        return "it replaces the parameters of a module and computes no product"
    return "its output is a nonlinear function of its input"


def opened(adapted: Adapted, x: Tensor) -> list[tuple[Any, Any, dict[str, Tensor]]]:
    """(assignment, entry, signals) for every site of an adapter, with the signals that a pass over x produces."""
    from ...session import session
    from ...signals import produce

    entries, model = adapted.entries(), adapted.model
    wanted = {s for e in entries.values() for s in e.signals.values()}
    shared = session(model)
    off, shared.off = shared.off, True
    try:
        signals = {s: produce(s, model, (x,), {}) for s in wanted}
    finally:
        shared.off = off
    return [(a, entries[a.site.name], signals) for a in adapted.assignments]


def ruled(adapted: Adapted) -> dict[str, Tensor]:
    """The tensors that rules move, by the names of `state()`."""
    state, found = adapted.state(), {}
    for a in adapted.assignments if adapted.plan.method.sites == "weight" else ():  # type: ignore[union-attr]
        for word, p in a.method.declare(a.site).items() if a.shares is None else ():  # the other end of a tied weight declares nothing
            if isinstance(p, Param) and p.ruled:
                found[f"{a.site.name}.{word}"] = state[f"{a.site.name}.{word}"]
    return found


def push(adapted: Adapted, size: float = 0.1) -> None:
    """Noise on everything that is no constant: what is trained, and the numbers that rules move."""
    moved = {k: t for k, t in ruled(adapted).items() if t.is_floating_point()}
    with torch.no_grad():
        for name, p in {**adapted.trainable(), **moved}.items():
            p.add_(values(*p.shape, name=f"{adapted.name}/{name}", std=size).to(p.dtype))


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The base's own part of the state dict."""
    return {k: v for k, v in model.state_dict().items() if "deltaw" not in k}


def dense(op: Op) -> Tensor:
    return op.dense().detach()
