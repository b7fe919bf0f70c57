"""Inner optimisers on coordinates: C -> (direction U, gain), where lr · gain · U is the step.

The gain is what a convention puts outside: Adam's bias correction, with epsilon before it ("hf": GaLore, Fira, OSD, LoRA-FA). With
epsilon after it ("torch") the correction is in U and the gain is 1. `first` and `second` name the state that scales
with the gradient and with its square: what carries transport.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Numbers = dict[str, Tensor]


class Inner:
    first: ClassVar[tuple[str, ...]] = ()
    second: ClassVar[tuple[str, ...]] = ()

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        raise NotImplementedError


def count(s: Numbers) -> int:
    """The number of this call, from 1, kept in the state."""
    s["step"] = s["step"] + 1 if "step" in s else torch.ones(())
    return int(s["step"])


def mean(s: Numbers, name: str, beta: float, new: Tensor) -> Tensor:
    """s[name] <- beta s[name] + (1 - beta) new, from zero."""
    if name not in s:
        s[name] = torch.zeros_like(new)
    return s[name].mul_(beta).add_(new, alpha=1 - beta)


@dataclass(frozen=True)
class SGD(Inner):
    """U = C."""

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        return C, 1.0


@dataclass(frozen=True)
class Sign(Inner):
    """U = sign C."""

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        return C.sign(), 1.0


@dataclass(frozen=True)
class Ema(Inner):
    """m <- beta m + (1 - beta) C; U = m, over 1 - betaᵗ where `corrected`."""

    beta: float = 0.9
    corrected: bool = True
    first: ClassVar[tuple[str, ...]] = ("m",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        t = count(s)
        return mean(s, "m", self.beta, C), 1 / (1 - self.beta**t) if self.corrected else 1.0


@dataclass(frozen=True)
class Adam(Inner):
    """m, v: running means of C and C². torch: U = m̂ / (sqrt v̂ + eps); hf: U = m / (sqrt v + eps), gain sqrt(1 - b2ᵗ) / (1 - b1ᵗ)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    convention: Literal["torch", "hf"] = "torch"
    first: ClassVar[tuple[str, ...]] = ("m",)
    second: ClassVar[tuple[str, ...]] = ("v",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        (b1, b2), t = self.betas, count(s)
        m = mean(s, "m", b1, C)
        if "v" not in s:
            s["v"] = torch.zeros_like(C)
        root = s["v"].mul_(b2).addcmul_(C, C, value=1 - b2).sqrt()
        if self.convention == "hf":
            return m / root.add_(self.eps), (1 - b2**t) ** 0.5 / (1 - b1**t)
        return m / root.div_((1 - b2**t) ** 0.5).add_(self.eps).mul_(1 - b1**t), 1.0
