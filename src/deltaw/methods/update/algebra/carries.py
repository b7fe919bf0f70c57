"""What becomes of the inner state when the frame moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .draw import Draw
from .inners import Inner, Numbers

Movement = Callable[[Tensor], Tensor]


class Carry:
    def __call__(self, inner: Inner, s: Numbers, move: Movement, draw: Draw) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Keep(Carry):
    """Nothing is done: moments stay with the number of their coordinate, whatever the new axes are."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, draw: Draw) -> None:
        pass


@dataclass(frozen=True)
class Reset(Carry):
    """Moments and step count start again."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, draw: Draw) -> None:
        s.clear()


@dataclass(frozen=True)
class Move(Carry):
    """First moments go through `move`; second ones stay as they are."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, draw: Draw) -> None:
        for name in inner.first:
            if name in s:
                s[name] = move(s[name])


@dataclass(frozen=True)
class Prune(Carry):
    """A random share of the moments becomes zero; the step count goes on."""

    share: float = 0.999

    def __call__(self, inner: Inner, s: Numbers, move: Movement, draw: Draw) -> None:
        for name in (*inner.first, *inner.second):
            if name in s:
                keep = draw.uniform(tuple(s[name].shape), torch.empty(0, device=s[name].device), f"prune.{name}") >= self.share
                s[name] *= keep
