"""What becomes of the inner state when the frame moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ....errors import SpecError
from .draw import Draw
from .inners import Inner, Numbers

Movement = Callable[[Tensor], Tensor]


class Carry:
    """A rule for the inner state of one matrix at a refresh of its frame; `s` is changed in place."""

    def fits(self, inner: Inner) -> None:
        """SpecError where the two do not go together."""

    def sight(self, G: Tensor, inner: Inner, s: Numbers, up: Movement) -> Tensor:
        """What the new frame is chosen from: the gradient."""
        return G

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        """move: old coordinates to new ones. spread: the same map with its coefficients squared, for variances."""
        raise NotImplementedError


@dataclass(frozen=True)
class Keep(Carry):
    """Nothing is done: moments stay with the number of their coordinate, whatever the new axes are."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        pass


@dataclass(frozen=True)
class Reset(Carry):
    """Moments and step count start again."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        s.clear()


@dataclass(frozen=True)
class Move(Carry):
    """First moments go through `move`; second ones stay as they are."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        for name in inner.first:
            if name in s:
                inner.write(s, name, move(inner.read(s, name)))


@dataclass(frozen=True)
class Move12(Carry):
    """First moments go through `move`; second ones as variances do: with m̂, v̂ corrected for their bias, the new v̂ is
    |spread(v̂ - m̂²) + move(m̂)²| (LDAdam's). look > 0: the new frame is chosen from look · up(m̂) + (1 - look) G."""

    look: float = 0.0

    def fits(self, inner: Inner) -> None:
        if inner.second and not inner.elementwise:
            raise SpecError(
                f"Move12 needs a second moment for each coordinate; {type(inner).__name__} keeps sums over rows and columns: use Move"
            )

    def sight(self, G: Tensor, inner: Inner, s: Numbers, up: Movement) -> Tensor:
        if not self.look or not inner.first or inner.first[0] not in s:
            return G
        return G * (1 - self.look) + up(inner.read(s, inner.first[0]) / _corrections(inner, s)[0]) * self.look

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        c1, c2 = _corrections(inner, s)
        for first, second in zip_longest(inner.first, inner.second):
            if first not in s:
                continue
            m = inner.read(s, first)
            moved = move(m)
            if second is not None:
                v = spread(inner.read(s, second) / c2 - (m / c1) ** 2) + (moved / c1) ** 2
                inner.write(s, second, v.abs() * c2)
            inner.write(s, first, moved)


def _corrections(inner: Inner, s: Numbers) -> tuple[float, float]:
    """1 - betaᵗ of both moments; 1 where an inner optimiser does not correct."""
    if "step" not in s or not hasattr(inner, "betas"):
        return 1.0, 1.0
    t = int(s["step"])
    return 1 - inner.betas[0] ** t, 1 - inner.betas[1] ** t


@dataclass(frozen=True)
class Prune(Carry):
    """A random share of the moments becomes zero; the step count goes on."""

    share: float = 0.999

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        for name in (*inner.first, *inner.second):
            if name in s:
                value = inner.read(s, name)
                keep = (
                    draw.uniform(tuple(value.shape), torch.empty(0, device=value.device), f"prune.{name}") >= self.share
                )
                inner.write(s, name, value * keep)
