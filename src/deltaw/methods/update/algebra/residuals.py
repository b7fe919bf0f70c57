"""What becomes of the part of the gradient outside the frame: E = G - up(C)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ....errors import SpecError
from .frames import Frame
from .inners import Adam, Inner, Numbers


@dataclass(frozen=True)
class Seen:
    """What a residual may look at: the gradient, its coordinates, the inner direction, the frame, the step's scale and gain."""

    G: Tensor
    C: Tensor
    U: Tensor
    frame: Frame
    f: Numbers
    scale: float
    gain: float = 1.0

    @property
    def E(self) -> Tensor:
        return self.G - self.frame.up(self.f, self.C)


class Residual:
    """What is added to a direction for the part of the gradient outside the frame; nothing of its own is kept by default."""

    wants_lost: ClassVar[bool] = False  # asks for `lost` when the frame moves

    def fits(self, frame: Frame) -> None:
        """SpecError where the two do not go together."""

    def before(self, G: Tensor, s: Numbers) -> Tensor:
        """The gradient that the frame sees."""
        return G

    def lost(self, part: Tensor, s: Numbers) -> None:
        """The part of the first moment, as a matrix, that the new frame and the carry did not keep."""

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        """What is added to the direction; None for nothing."""
        raise NotImplementedError

    def floats(self, m: int, n: int) -> int:
        """Numbers of floating-point state for an m x n matrix."""
        return 0


@dataclass(frozen=True)
class Drop(Residual):
    """Nothing."""

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Raw(Residual):
    """c E. made_good > 0: in the step in which the frame moves, also that share of the momentum that the move lost."""

    c: float = 1.0
    made_good: float = 0.0

    @property
    def wants_lost(self) -> bool:  # type: ignore[override]
        return bool(self.made_good)

    def lost(self, part: Tensor, s: Numbers) -> None:
        s["lost"] = part * self.made_good

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        R = seen.E * self.c
        return R + s.pop("lost") if "lost" in s else R


@dataclass(frozen=True)
class SignSGD(Residual):
    """c sign E. sign(0) = 0: where a frame of coordinates is exact nothing is added.

    With other frames an entry of E below 4 eps |G| counts as 0: a batch with fewer rows than the rank leaves rounding outside the
    frame and nothing else, and its signs would be as large as any.
    """

    c: float = 1.0

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        E = seen.E
        if not seen.frame.exact:
            E.masked_fill_(E.abs() <= 4 * torch.finfo(E.dtype).eps * seen.G.norm(), 0.0)
        return E.sign_() * self.c


@dataclass(frozen=True)
class Phi(Residual):
    """Fira's: S = (G - scale up(C)) times |U_j| / |C_j| along the frame, and |S| grows by at most `growth` a step; c S is added.

    With scale != 1 this is not the orthogonal residual: the authors' code has it so. With scale = 0 it is the whole gradient,
    for which the frame only measures (APOLLO). per = "matrix": one ratio for all.
    """

    growth: float = 1.01
    c: float = 1.0
    per: Literal["vector", "matrix"] = "vector"

    def fits(self, frame: Frame) -> None:
        if self.per == "vector" and not frame.one_sided:
            raise SpecError(
                f"Phi scales rows or columns, and {frame} has none to compare; use a one-sided frame or per='matrix'"
            )

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        along = {"dim": seen.frame.along(seen.f), "keepdim": True} if self.per == "vector" else {}
        phi: Tensor = seen.U.norm(**along) / (seen.C.norm(**along) + 1e-8)
        S = (seen.G - seen.scale * seen.frame.up(seen.f, seen.C)) * phi if seen.scale else seen.G * phi
        norm = S.norm()
        if "norm" in s:
            over = torch.clamp(norm / (s["norm"] + 1e-8), min=self.growth) / self.growth
            S, norm = S / over, norm / over
        s["norm"] = norm
        return S * self.c if self.c != 1 else S


@dataclass(frozen=True)
class Feedback(Residual):
    """E is added to the next gradient, and so is what a move of the frame takes from the first moment, times beta / (1 - beta).

    So all of the gradient arrives in the end: without the second part momentum would be lost at each move. State: a matrix of the
    gradient's size.
    """

    beta: float = 0.9
    wants_lost: ClassVar[bool] = True

    def fits(self, frame: Frame) -> None:
        if not frame.orthonormal:
            raise SpecError(
                f"error feedback with {type(frame).__name__} diverges: up(down(G)) may be longer than G; use an orthonormal frame"
            )

    def before(self, G: Tensor, s: Numbers) -> Tensor:
        return G + s.pop("error") if "error" in s else G

    def lost(self, part: Tensor, s: Numbers) -> None:
        s["lost"] = part * (self.beta / (1 - self.beta))

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        s["error"] = seen.E + s.pop("lost") if "lost" in s else seen.E
        return None

    def floats(self, m: int, n: int) -> int:
        return m * n


@dataclass(frozen=True)
class Sparse(Residual):
    """Adam of its own for E on a fixed set of places: the `share` of them where |E| is largest at step `after` (from 0).

    Nothing before that step. It completes the inner step, so it has its scale. State: the places and two moments for each.
    """

    share: float = 0.01
    after: int = 100
    inner: Inner = Adam()

    def __call__(self, seen: Seen, s: Numbers) -> Tensor | None:
        t = int(s.setdefault("step", torch.zeros(())))
        s["step"] = s["step"] + 1
        if t < self.after:
            return None
        E = seen.E.flatten()
        if "places" not in s:
            s["places"] = E.abs().topk(round(self.share * E.numel())).indices.sort().values
        mine = {k.removeprefix("at."): v for k, v in s.items() if k.startswith("at.")}
        U, gain = self.inner(E[s["places"]], mine)
        s |= {f"at.{k}": v for k, v in mine.items()}
        return torch.zeros_like(E).index_copy_(0, s["places"], U * (gain / seen.gain * seen.scale)).view_as(seen.G)

    def floats(self, m: int, n: int) -> int:
        return self.inner.floats((round(self.share * m * n),))
