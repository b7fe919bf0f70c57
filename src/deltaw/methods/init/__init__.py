"""Initialisations: how a method's tensors start. One file each; the key is the file name.

An init has `shifts` (does it move a constant into the base?) and `fill(start, p, stats) -> Op | None`: it writes the
tensors of one site in place; a returned operator is a constant that is added to the base at this site and kept with
the delta, so that the base itself is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from ...errors import SpecError
from ...ops import Op
from ...spec import Registry, Start, Tensors, scale_of

T = TypeVar("T")


class Init(Protocol):
    key: ClassVar[str]
    shifts: ClassVar[bool]
    needs: ClassVar[frozenset[str]]  # of {"weight", "gradient", "inputs"}

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op | None: ...


INITS: Registry[Any] = Registry("init")


def init(*, paper: str, shifts: bool = False, needs: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register an initialisation under the name of its module."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper, done.shifts, done.needs = (
            cls.__module__.rsplit(".", 1)[-1],
            paper,
            shifts,
            frozenset(needs),
        )
        INITS.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register


def two_factors(start: Start, p: Tensors) -> tuple[Tensor, Tensor, float]:
    """(B, A, s) of a method of the form W + s B A, or the reason why this init does not apply."""
    names = vars(p)
    if "A" not in names or "B" not in names or p.B.shape[1] != p.A.shape[0]:
        raise SpecError(f"this init sets the factors of W + s B A; {start.method} at {start.name} has no such A and B")
    s = scale_of(start.method)
    if not 0 < s < math.inf:
        raise SpecError(f"this init divides by the scale of W + s B A; {start.method} at {start.name} has s = {s}")
    return p.B, p.A, s
