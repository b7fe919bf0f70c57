"""Update rules: how trained tensors move. One file each; the key is the file name.

A rule is a frozen dataclass with `optimizer(named, lr, lookups=(), **kw) -> torch.optim.Optimizer`. Parameters are given
to torch by name, so that the optimiser's state is keyed by name; `lookups` are the names that belong to embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ...spec import Registry

T = TypeVar("T")
UPDATES: Registry[Any] = Registry("update")


def update(*, paper: str) -> Callable[[type[T]], type[T]]:
    """Register an update rule under the name of its module."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper = cls.__module__.rsplit(".", 1)[-1], paper
        UPDATES.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register
