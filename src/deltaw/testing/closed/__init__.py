"""Oracles of what is no structure: closed forms in float64 that share no code with what they judge. One file each, by axis.

closed/update/KEY.py:  RULES = [instances];  closed(rule, p, grad, lr, steps, s) -> {name: tensor after the steps}
    p: {name: start}; grad(p) -> {name: gradient} there. A rule of matrices gets "tall.weight" (12 x 6), "wide.weight" (6 x 12) and
    "tall.bias"; a rule of factors "wide.A" (3 x 12), "wide.B" (6 x 3), "tall.A", "tall.B" and the s of W + s B A.
    A rule for one structure: check(rule) -> what was compared, in the place of closed.
    Optional PEFT = "how it was compared": set where tests/ compare with HF PEFT too.
    Optional PAIRS = True: a rule that is no rule of factors, compared on factors all the same.
closed/init/KEY.py:    INITS = [instances];  closed(init, W, stats, r, s) -> (B, A, offset or None)
    stats: what the init needs, {"gradient": G, "inputs": C} for the site. B A up to the sign of each pair.
    An init that draws, or for one structure: check(init) -> what was compared, in the place of closed.
closed/rules/KEY.py, closed/rank/KEY.py, closed/compress/KEY.py:   check() -> what was compared; raises LawBroken
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def closed(axis: str, key: str) -> ModuleType | None:
    """The closed form of an entry of an axis ("update", "init", "rules"), or None."""
    package = importlib.import_module(f"{__name__}.{axis}")
    if key not in {m.name for m in pkgutil.iter_modules(package.__path__)}:
        return None
    return importlib.import_module(f"{package.__name__}.{key}")
