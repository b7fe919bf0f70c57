"""Which tensors a rule over matrices moves, and what moves the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .. import About
from .optimizer import Rule, SubOptimizer, Unit
from .sub import Plain

ADAMW = Plain()


def matrices(
    rule: Rule | Callable[[str, nn.Parameter], Rule],
    named: Mapping[str, nn.Parameter],
    lr: float,
    about: About,
    plain: Rule = ADAMW,
    **kw: Any,
) -> SubOptimizer:
    """An optimiser in which every matrix that is no lookup table moves by `rule` (or by what `rule(name, p)` gives), and the
    rest (embeddings, heads, norms, biases, what has other than two axes) by `plain`."""
    units = []
    for name, p in named.items():
        mine = p.dim() == 2 and name not in about.lookups
        chosen = (rule if isinstance(rule, Rule) else rule(name, p)) if mine else plain
        units.append(Unit(name, chosen, {"W": p}))
    return SubOptimizer([{"params": list(named.items())}], units, lr, **kw)
