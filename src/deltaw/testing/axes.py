"""check() for what is no structure: update rules, initialisations, rules between steps, rank policies, compressors."""

from __future__ import annotations

from typing import Any

from ..methods.compress import COMPRESSORS
from ..methods.init import INITS
from ..methods.rank import RANKS
from ..methods.update import UPDATES
from ..spec import RULES
from . import entries, inits, rules, updates
from .closed import closed
from .report import Report, timed

AXES: dict[str, Any] = {"update": UPDATES, "init": INITS, "rules": RULES, "rank": RANKS, "compress": COMPRESSORS}
# axis: its laws, what they run on for a key, and how one of these is compared with the closed form
CHECKS: dict[str, tuple[Any, Any, Any]] = {
    "update": (updates.LAWS, updates.rules_of, updates.compare_closed),
    "init": (inits.LAWS, inits.inits_of, inits.compare_closed),
    "rules": (rules.LAWS, rules.plans_of, None),
    "rank": (entries.laws_of("rank"), entries.items_of("rank"), None),
    "compress": (entries.laws_of("compress"), entries.items_of("compress"), None),
}


def oracles_of(axis: str, key: str) -> list[str]:
    """What an entry is compared with: "closed", and "peft" where tests/ compare with HF PEFT too."""
    judge = closed(axis, key)
    return (["closed"] if judge is not None else []) + (["peft"] if hasattr(judge, "PEFT") else [])


def check_axis(axis: str, key: str) -> Report:
    """The laws of the axis and the closed form, if there is one; an entry without one is lawful."""
    judge, report = closed(axis, key), Report(key, oracles_of(axis, key))
    laws, items_of, compare = CHECKS[axis]
    for item in items_of(key):
        report.results += [timed(name, item, "", lambda law=law, item=item: law(item)) for name, law in laws.items()]
        if judge is not None and compare is not None:
            report.results.append(timed("oracle: closed", item, "float64", lambda item=item: compare(item)))
    if judge is not None and compare is None:
        report.results.append(timed("oracle: closed", key, "float64", judge.check))
    return report
