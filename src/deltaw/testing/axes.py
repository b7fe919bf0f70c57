"""check() for what is no structure: update rules, initialisations, rules between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..methods.init import INITS
from ..methods.update import UPDATES
from ..spec import RULES
from . import inits, updates
from .closed import closed
from .report import Report, timed

AXES: dict[str, Any] = {"update": UPDATES, "init": INITS, "rules": RULES}


def axis_of(key: str) -> str | None:
    """The axis that has this key besides structures."""
    return next((axis for axis, registry in AXES.items() if key in registry), None)


def oracles_of(axis: str, key: str) -> list[str]:
    """What an entry is compared with: "closed", and "peft" where tests/ compare with HF PEFT too."""
    judge = closed(axis, key)
    return (["closed"] if judge is not None else []) + (["peft"] if hasattr(judge, "PEFT") else [])


def check_axis(axis: str, key: str) -> Report:
    """The laws of the axis and the closed form, if there is one; an entry without one is lawful."""
    judge = closed(axis, key)
    cls = AXES[axis][key]
    report = Report(key, oracles_of(axis, key))
    laws: dict[str, Callable[[Any], Any]] = {"update": updates.LAWS, "init": inits.LAWS}.get(axis, {})
    many = {"update": updates.rules_of, "init": inits.inits_of}.get(axis, lambda _: [])(key)
    for item in many:
        report.results += [timed(name, item, "", lambda law=law, item=item: law(item)) for name, law in laws.items()]  # type: ignore[misc]
        if judge is not None:
            compare = updates.compare_closed if axis == "update" else inits.compare_closed
            report.results.append(timed("oracle: closed", item, "float64", lambda item=item, c=compare: c(item)))  # type: ignore[misc]
    if axis == "rules" and judge is not None:
        report.results.append(timed("oracle: closed", cls(), "float64", judge.check))
    return report
