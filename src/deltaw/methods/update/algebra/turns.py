"""Units that have turns: one block of tensors moves for some steps, then the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ....errors import SpecError
from .draw import Draw
from .optimizer import Rule, Step

Order = Literal["random", "ascending", "descending", "mirror"]


def turn(k: int, count: int, at_once: int, order: Order, seed: int) -> list[int]:
    """The blocks that are active in period k, the same in every unit and process.

    random: a new order for each pass over all blocks; a pass that does not come out even fills its last period from its own start.
    mirror: pairs from both ends.
    """
    if order == "mirror":
        if count % 2 or at_once % 2:
            raise SpecError(f"the order 'mirror' takes pairs: {count} blocks, {at_once} at once are not both even")
        half = count // 2
        left = [(k * (at_once // 2) + i) % half for i in range(at_once // 2)]
        return left + [count - 1 - i for i in left]
    if order == "random":
        periods = -(-count // at_once)
        deal = (
            Draw(seed, "turns", k // periods).uniform((count,), torch.empty(0, dtype=torch.float64)).argsort().tolist()
        )
        return [deal[(k % periods * at_once + i) % count] for i in range(at_once)]
    up = [(k * at_once + i) % count for i in range(at_once)]
    return up if order == "ascending" else [count - 1 - i for i in up]


@dataclass(frozen=True)
class Turns(Rule):
    """`active` moves the unit while block `index` of `count` has its turn, `idle` (nothing, if None) otherwise.

    Every `every` steps the turn passes on and the unit's state goes: an idle unit without a rule keeps one number.
    """

    active: Rule
    index: int
    count: int
    at_once: int = 1
    order: Order = "random"
    every: int = 50
    idle: Rule | None = None

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        t = self._next(state)
        mine = self.index in turn(t // self.every, self.count, self.at_once, self.order, now.seed)
        rule = self.active if mine else self.idle
        if rule is not None:
            rule.step(p, g, {role: s.setdefault("turn", {}) for role, s in state.items()}, now)

    def rest(self, state: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self._next(state())  # the turn is that of all units

    def _next(self, state: dict[str, dict[str, Any]]) -> int:
        """The number of this step; with a new turn old state goes."""
        first = next(iter(state.values()))
        t = int(first.setdefault("turns", torch.zeros(())))
        if t % self.every == 0:
            for s in state.values():
                s.pop("turn", None)
        first["turns"] = first["turns"] + 1
        return t


@dataclass(frozen=True)
class Master(Rule):
    """`rule` on a float32 copy of tensors that have fewer bits: steps below their resolution add up."""

    rule: Rule

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        low = {k for k, t in p.items() if t.dtype.itemsize < 4}
        for k in low:
            state[k].setdefault("master", p[k].detach().float())
        own = {k: state[k]["master"] if k in low else t for k, t in p.items()}
        self.rule.step(
            own,
            {k: g[k].to(t.dtype) for k, t in own.items()},
            {k: s.setdefault("rule", {}) for k, s in state.items()},
            now,
        )
        for k in low:
            p[k].copy_(own[k])
