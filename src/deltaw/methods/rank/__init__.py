"""Who gets which rank, decided before training: static policies, one file each, and the pure parts they share.

A policy is a frozen dataclass with `ranks(starts, stats) -> {site: rank}`; `needs` names what it looks at, as an init does ("inputs",
"gradient", "original": see deltaw.probe). Plan(method, ranks="sensitivity_lora") applies it when the plan is attached: the ranks become
overrides, so that a saved adapter has the same shapes. A policy that has to train to decide has `search(...)` instead and is used through
deltaw.search_ranks. scores.py, budgets.py, allocators.py are pure functions; what changes ranks during training is a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from ...spec import Registry, Start, entry

T = TypeVar("T")
RANKS: Registry[Any] = Registry("rank policy")


class Ranks(Protocol):
    """See the module."""

    key: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Any]]) -> dict[str, int]: ...


def ranks(*, paper: str, needs: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register a policy under the name of its module."""
    return entry(RANKS, paper, needs=frozenset(needs))
