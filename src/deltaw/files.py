"""Files (being written)."""

from __future__ import annotations

from typing import Any


def fingerprint(model: Any, without: Any = ()) -> dict[str, str]:
    return {}


def save_adapter(*a: Any, **k: Any) -> Any: ...
def save_lora(*a: Any, **k: Any) -> Any: ...
def save_model(*a: Any, **k: Any) -> Any: ...
