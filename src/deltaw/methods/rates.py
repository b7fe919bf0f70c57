"""How the best learning rate of an adapter moves with width, rank and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import SpecError

Which = Literal["A", "B", "full"]


@dataclass(frozen=True)
class Setting:
    """A place where a rate is tuned or wanted: width n, rank r and scale s of W + s B A; start: the factor that starts random, or
    "full" for the whole weight. small: so few and short steps that lr n stays below 1."""

    n: int
    r: int = 1
    s: float = 1.0
    start: Which = "A"
    small: bool = False

    @property
    def law(self) -> float:
        """What the best rate is proportional to, among settings of one kind."""
        if self.start == "A":
            return 1 / (self.s * self.r) if self.small else (self.s * self.r * self.n) ** -0.5
        return 1 / (self.n * (self.s if self.start == "B" else 1.0))


def suggest_lr(lr: float, source: Setting, target: Setting) -> float:
    """The rate for `target` where lr is right for `source`. SpecError between kinds whose laws share no constant."""
    kinds = {(s.start == "A", s.start == "A" and s.small) for s in (source, target)}
    if len(kinds) > 1:
        raise SpecError(f"a rate tuned for {source} says nothing about {target}: start both from the same factor (B and full share a law)")
    return lr * target.law / source.law
