"""The laws of initialisations, and their comparison with closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..methods.init import INITS
from .closed import closed

LAWS: dict[str, Callable[[Any], str]] = {}


def inits_of(key: str) -> list[Any]:
    """The instances that the closed form names, else the defaults."""
    found = closed("init", key)
    return list(found.INITS) if found is not None else [INITS[key]()]


def compare_closed(init: Any) -> str:
    raise NotImplementedError
