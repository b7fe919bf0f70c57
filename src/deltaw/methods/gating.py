"""Where along a sequence a delta acts: the rules, and the map that follows one (no method imports another)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpecError
from ..ops import Affine, Map, delta
from ..spec import Signal


@dataclass(frozen=True)
class Rule:
    """The first and last tokens of a row's prompt, each at most half of it; or all from the last occurrence of a
    sequence of token ids on; or everything."""

    first: int = 0
    last: int = 0
    after: tuple[int, ...] = ()
    everywhere: bool = False


def rule(text: str) -> Rule:
    """'all', 'f7', 'l7', 'f7+l7' or 'after 12 57' (token ids)."""
    if text == "all":
        return Rule(everywhere=True)
    if found := re.fullmatch(r"after((?: \d+)+)", text):
        return Rule(after=tuple(int(i) for i in found[1].split()))
    if found := re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", text):
        if (found[1] or found[2]) and ("+" in text) == bool(found[1] and found[2]):
            return Rule(int(found[1] or 0), int(found[2] or 0))
    raise SpecError(f"positions are 'all', 'f7', 'l7', 'f7+l7' or 'after 12 57' (token ids); found {text!r}")


def places(text: str) -> Signal:
    """The signal that is true at the tokens a rule picks, (batch, tokens)."""
    rule(text)
    return Signal(f"positions {text}")


class Gated(Map):
    """L(x) at the tokens where `here` is true, base(x), bit for bit, at the others. An Affine L costs its delta only."""

    def __init__(self, base: Affine, L: Map, here: Tensor):
        self.base, self.L, self.here = base, L, here
        self.op = delta(L.op, base.op) if isinstance(L, Affine) else None

    def mixed(self, y: Tensor, z: Tensor) -> Tensor:
        if self.here.numel() != y.numel() // y.shape[-1]:
            raise SpecError(
                f"a delta at some positions needs the tokens of the batch, {tuple(self.here.shape)}; this layer sees "
                f"{tuple(y.shape[:-1])}. Leave it out (exclude=...)"
            )
        return torch.where(self.here.reshape(*y.shape[:-1], 1), z.to(y.dtype), y)

    def moved(self, y: Tensor, change: Tensor) -> Tensor:
        assert isinstance(self.L, Affine)
        z = y + change.to(y.dtype)
        if self.L.bias is not self.base.bias and self.L.bias is not None:
            z = z + (self.L.bias if self.base.bias is None else self.L.bias - self.base.bias).to(y.dtype)
        return self.mixed(y, z)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return self.mixed(y, self.L(x)) if self.op is None else self.moved(y, self.op(x))

    def cols(self, i: Tensor) -> Tensor:
        y = self.base.cols(i)
        return self.mixed(y, self.L.cols(i)) if self.op is None else self.moved(y, self.op.cols(i))
