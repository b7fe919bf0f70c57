"""What becomes of the part of the gradient outside the frame: E = G - up(C)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frames import Frame
from .inners import Numbers


@dataclass(frozen=True)
class Seen:
    """What a residual may look at: the gradient, its coordinates, the inner direction, the frame and the step's scale."""

    G: Tensor
    C: Tensor
    U: Tensor
    frame: Frame
    f: Numbers
    scale: float

    @property
    def E(self) -> Tensor:
        return self.G - self.frame.up(self.f, self.C)


class Residual:
    def before(self, G: Tensor, s: Numbers) -> Tensor:
        """The gradient that the frame sees."""
        return G

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        """What is added to the direction; None for nothing."""
        raise NotImplementedError


@dataclass(frozen=True)
class Drop(Residual):
    """Nothing."""

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Raw(Residual):
    """c E."""

    c: float = 1.0

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        return seen.E * self.c


@dataclass(frozen=True)
class SignSGD(Residual):
    """c sign E. sign(0) = 0: where a frame of coordinates is exact nothing is added."""

    c: float = 1.0

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        return seen.E.sign_() * self.c


@dataclass(frozen=True)
class Phi(Residual):
    """Fira's: S = (G - scale up(C)) times |U_j| / |C_j| along the frame, and |S| grows by at most `growth` a step.

    With scale != 1 this is not the orthogonal residual: the authors' code has it so.
    """

    growth: float = 1.01

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        along = 1 if "right" in seen.f else 0
        phi = seen.U.norm(dim=along, keepdim=True) / (seen.C.norm(dim=along, keepdim=True) + 1e-8)
        S = (seen.G - seen.scale * seen.frame.up(seen.f, seen.C)) * phi
        norm = S.norm()
        if "norm" in s:
            over = torch.clamp(norm / (s["norm"] + 1e-8), min=self.growth) / self.growth
            S, norm = S / over, norm / over
        s["norm"] = norm
        return S
