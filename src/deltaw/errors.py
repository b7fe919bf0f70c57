"""The errors of deltaw. Each message says where, what was expected, what was found and what to do."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class DeltawError(Exception):
    """Base class: `except deltaw.errors.DeltawError` catches everything this library raises on purpose."""


class SpecError(DeltawError, ValueError):
    """A method, plan or recipe is declared wrongly (unknown field, impossible value)."""


class TargetError(SpecError):
    """A target, layer or module name matches nothing in the model."""


class ShapeError(SpecError):
    """Sizes do not fit (a rank, block or group that does not divide, factors that do not chain)."""


class NotLinear(DeltawError, TypeError):
    """A weight-only operation was asked of a map that is no linear operator (a gate, a router, a nonlinearity)."""


class NotMergeable(NotLinear):
    """The delta cannot be written into the base weights, or not into weights of this shape."""


class StateMismatch(DeltawError, ValueError):
    """A file or state does not belong here: corrupt, missing or extra keys, wrong shapes, or another base."""


class MissingExtra(DeltawError, ImportError):
    """An optional package is not installed."""


def need(module: str, extra: str) -> Any:
    """Import an optional package where it is used, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(
            f"this needs the package '{module}', which is not installed: pip install 'deltaw[{extra}]'"
        ) from error


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """', did you mean ...?' or '' for messages about names that do not exist."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(word, names, n, 0.5) or get_close_matches(word.rsplit(".", 1)[-1], names, n, 0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
