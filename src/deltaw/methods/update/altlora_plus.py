"""AltLoRA+: AltLoRA with Adam's second moment on the coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from . import update
from .algebra import Inner, Move
from .algebra.inners import Numbers, count, mean
from .algebra.pair import Factor, Lend, Pair, PairUpdate


@dataclass(frozen=True)
class Plus(Inner):
    """U = (b1 m + (1 - b1) C) / (sqrt v + eps), gain 1 / (1 - b1ᵗ): v has no bias correction."""

    betas: tuple[float, float]
    eps: float
    first: ClassVar[tuple[str, ...]] = ("m",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        (b1, b2), t, lent = self.betas, count(s), s.pop("lent", None)
        m = mean(s, "m", b1, C)
        return (m if lent is None else lent * b1 + C * (1 - b1)) / mean(s, "v", b2, C * C).sqrt().add_(self.eps), 1 / (
            1 - b1**t
        )


@update(paper="arXiv:2505.12455")
class AltLoRAPlus(PairUpdate):
    """`altlora` with the step M / (sqrt V + eps), V <- b2 V + (1 - b2) g² of the preconditioned gradients g, not carried as the frame moves.

    State: `altlora`'s and V, 3 r (m + n). V is elementwise: the basis of A and B matters. Source: Yu et al. 2025 and their code. Trap: that
    steps with the transported momentum and stores the untransported one, store="reference"; its V has no bias correction.
    """

    betas: tuple[float, float] = (0.999, 0.98)
    eps: float = 1e-6
    delta: float = 1e-3
    store: Literal["transported", "reference"] = "transported"
    order: Literal["sequential", "turns"] = "sequential"
    weight_decay: float = 1e-5

    def rule(self, s: float) -> Pair:
        carry, inner = Move() if self.store == "transported" else Lend(), Plus(self.betas, self.eps)
        return Pair(Factor(1.0, self.delta, s), inner, carry, self.order, decay="after")

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r): two moments and previous factors."""
        return 3 * r * (m + n)
