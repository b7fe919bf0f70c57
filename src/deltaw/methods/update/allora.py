"""ALLoRA: rows of B that are still small get a larger step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import SpecError
from . import NOTHING, About, update
from .algebra import Adam, Draw, Frame, Plain, Sub, matrices
from .algebra.frames import Numbers


@dataclass(frozen=True)
class Rows(Frame):
    """C_i = c_i G_i, c_i = 1 / sqrt(|W_i| + 1 / eta²), and up(C) = C; on the update: C = G, up(C)_i = c_i C_i."""

    eta: float
    on: Literal["gradient", "update"] = "gradient"

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        return {"c": (W.to(G).norm(dim=1, keepdim=True) + self.eta**-2).rsqrt()}

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return f["c"] * G if self.on == "gradient" else G

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return C if self.on == "gradient" else f["c"] * C


@update(paper="arXiv:2410.09692")
class ALLoRA:
    """dL/dB_i <- dL/dB_i / sqrt(|B_i| + 1 / eta²), row by row, then AdamW; A: AdamW.

    The gain is eta where B_i = 0 and falls as the row grows. For s = 1 (alpha = r) and no dropout: eta takes the place of s. State:
    Adam's and a number a row; 2 r (m + n) + m. Source: Huang & Balestriero 2024, without code. Our reading of "inversely proportional to
    the parameters' norm"; others have |(B A)_i| in the root and weigh dL/dA with it too, which takes all of G. eta = 2 is that of
    public re-implementations. Trap: Adam hides a constant gain and follows a falling one late; on="update" puts it behind Adam.
    """

    eta: float = 2.0
    on: Literal["gradient", "update"] = "gradient"
    weight_decay: float = 0.0
    pairs: ClassVar[bool] = True

    def floats(self, m: int, n: int, r: int) -> int:
        """Numbers of optimiser state for A (r, n) and B (m, r)."""
        return 2 * r * (m + n) + m

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        if not any(k.endswith(".B") for k in named):
            raise SpecError(f"allora weighs the rows of B in W + s B A; found only {', '.join(list(named)[:5])}")
        rows, kw = Sub(Rows(self.eta, self.on), Adam(), every=1), {"weight_decay": self.weight_decay, **kw}
        return matrices(lambda k, p: rows if k.endswith(".B") else Plain(), named, lr, about, **kw)
