"""Initialisations: how a method's tensors start. One file each; the key is the file name.

An init has `shifts` (does it move a constant into the base?) and `fill(start, p, stats) -> Op | None`: it writes the
tensors of one site in place; a returned operator is a constant that is added to the base at this site and kept with
the delta, so that the base itself is never changed.

`needs` names what it looks at: "weight", or statistics of the site that `deltaw.probe` collects and `stats` then holds:
"gradient" (m, n), "inputs" and "inputs_by_max" (n, n), "components" (with "singular" and "share"), "original" (m, n). An
init may also give sites other ranks: `ranks(starts, stats) -> {site: rank}`; they become overrides of the plan, with s kept
where `keeps_scale`. `start` is what a method declares: "identity", or "none: WHY" where the first output is not the base's.
`fills` are tensors that the method would make after the init, and that this init makes instead. `structure`: the one method it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import DeltawError, SpecError
from ...ops import Affine, Op, delta, factors
from ...spec import Method, Registry, Start, Tensors, dataclass_transform, scale_of

T = TypeVar("T")


class Init(Protocol):
    """See the module."""

    key: ClassVar[str]
    shifts: ClassVar[bool]
    needs: ClassVar[frozenset[str]]
    start: ClassVar[str]
    fills: ClassVar[tuple[str, ...]]

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op | None: ...


INITS: Registry[Any] = Registry("init")


@dataclass_transform(frozen_default=True)
def init(
    *, paper: str, shifts: bool = False, needs: tuple[str, ...] = (), start: str = "identity", fills: tuple[str, ...] = (), structure: str = ""
) -> Callable[[type[T]], type[T]]:
    """Register an initialisation under the name of its module."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper, done.shifts = cls.__module__.rsplit(".", 1)[-1], paper, shifts
        done.needs, done.start, done.fills, done.structure = frozenset(needs), start, fills, structure
        INITS.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register


def measured(init: Any) -> frozenset[str]:
    """What of its needs has to be measured: all but the weight itself, which every start can see."""
    found: frozenset[str] = init.needs - {"weight"} if init is not None else frozenset()
    return found


def sketch(start: Start) -> Callable[[tuple[int, ...]], Tensor]:
    """Gaussian numbers for `leading` at this site, from their own stream."""
    return lambda shape: start.at("sketch", None).normal(shape, 1.0)


def two_factors(start: Start, p: Tensors) -> tuple[Tensor, Tensor, float]:
    """(B, A, s) of a method of the form W + s B A, or the reason why this init does not apply.

    The form is not believed but tried: with numbers in the place of A and B the change must be s times their product.
    Inside wrappers the innermost method counts.
    """
    refusal = f"this init sets the factors of W + s B A; {start.method} at {start.name} has no such A and B"
    names = vars(p)
    if "A" not in names or "B" not in names or p.A.dim() != 2 or p.B.dim() != 2 or p.B.shape[1] != p.A.shape[0]:
        raise SpecError(refusal)
    if start.own is not None and not {"A", "B"} <= set(start.own):
        raise SpecError(f"this init sets A and B at every site; those of {start.method} are shared by all sites")
    s = _scale(start, p)
    if s is None:
        raise SpecError(refusal)
    if not 0 < s < math.inf:
        raise SpecError(f"this init divides by the scale of W + s B A; {start.method} at {start.name} has s = {s}")
    return p.B, p.A, s


def _scale(start: Start, p: Tensors) -> float | None:
    """s, if the method's change is s B A for the tensors as they are and any A and B; else None."""
    B, A = (_numbers(t) for t in (p.B, p.A))
    trial = Tensors(**{**{k: getattr(p, k) for k in p.names()}, "A": A, "B": B})
    method = innermost(start.method)
    try:
        L = Affine(method.weight(start.W, trial)) if type(method).weight is not Method.weight else method.layer(Affine(start.W), trial)
        pair = factors(delta(L.op, start.W)) if isinstance(L, Affine) else None
    except (DeltawError, AttributeError, RuntimeError):  # it needs a signal, or tensors which start from A and B
        return None
    if pair is None or (B.shape[0], A.shape[1]) != tuple(start.W.shape):  # a product of other sizes
        return None
    rows, columns = (torch.arange(0, size, max(size // 64, 1), device=B.device) for size in start.W.shape)
    got, want = pair[0][rows].double() @ pair[1][:, columns].double(), B[rows] @ A[:, columns]
    s = float((got * want).sum() / (want * want).sum())
    if not math.isfinite(s):
        return s
    if not torch.allclose(got, s * want, rtol=1e-5, atol=1e-6 * abs(s)):
        return None
    declared = scale_of(method)
    if s == 0 and declared:  # nothing whatever A and B: a zero elsewhere hides them
        return None
    outside = scale_of(start.method) / (declared or 1.0)  # what wrappers multiply by
    return outside * (declared if math.isclose(s, declared, rel_tol=1e-6) else s)


def _numbers(like: Tensor) -> Tensor:
    grid = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return torch.sin(1.0 + grid * (grid % 7 + 1.3)).reshape(like.shape)


def innermost(method: Method) -> Method:
    """What all wrappers are around."""
    inner = [v for f in fields(method) if isinstance(v := getattr(method, f.name), Method)]  # type: ignore[arg-type]
    return innermost(inner[0]) if inner else method
