"""Which tensors a rule over matrices moves, and what moves the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import About
from .optimizer import Rule, Step, SubOptimizer, Unit
from .sub import Plain
from .turns import Turns

ADAMW = Plain()


@dataclass(frozen=True)
class Turned(Rule):
    """`rule` for a weight that is stored in x out, as transformers' Conv1D does: it sees out x in."""

    rule: Rule

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        self.rule.step({k: t.mT for k, t in p.items()}, {k: t.mT.contiguous() for k, t in g.items()}, state, now)


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
        if mine and name in about.turned and not isinstance(chosen, Turns):  # whole tensors in turns have no sides
            chosen = Turned(chosen)
        units.append(Unit(name, chosen, {"W": p}))
    return SubOptimizer([{"params": list(named.items())}], units, lr, **kw)
