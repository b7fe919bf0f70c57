"""Which tensors a rule over matrices moves, and what moves the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import NOTHING, About
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
    rule: Callable[[str, nn.Parameter], Rule],
    named: Mapping[str, nn.Parameter],
    lr: float,
    about: About,
    plain: Rule = ADAMW,
    **kw: Any,
) -> SubOptimizer:
    """An optimiser in which every matrix that is no lookup table moves by `rule(name, p)`, and the rest (embeddings, heads,
    norms, biases, what has other than two axes) by `plain`."""
    units = []
    for name, p in named.items():
        mine = p.dim() == 2 and name not in about.lookups
        chosen = rule(name, p) if mine else plain
        if mine and name in about.turned and not isinstance(chosen, Turns):  # whole tensors in turns have no sides
            chosen = Turned(chosen)
        units.append(Unit(name, chosen, {"W": p}))
    return SubOptimizer(named, units, lr, **kw)


class MatrixUpdate:
    """What update rules over matrices share: they say `rule()`, the rule of one matrix, and have a `weight_decay`; where matrices
    differ they say `of`, too."""

    weight_decay: float

    def rule(self) -> Rule:
        raise NotImplementedError

    def of(self, name: str, p: nn.Parameter, lr: float) -> Rule:
        """The rule of this matrix."""
        return self.rule()

    def plain(self) -> Rule:
        """The rule of the rest."""
        return ADAMW

    def floats(self, m: int, n: int) -> int:
        """Numbers of floating-point state for an m x n matrix."""
        return self.rule().floats(m, n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        kw = {"weight_decay": self.weight_decay, "plain": self.plain(), **kw}
        return matrices(lambda name, p: self.of(name, p, lr), named, lr, about, **kw)
