"""Adam whose second moment belongs to the entries of W, kept in the small: per column of a factor one r x r matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .carries import Move, Movement
from .draw import Draw
from .frames import Numbers
from .inners import Inner, count, mean
from .pair import Factor, Lifted


@dataclass(frozen=True)
class AdamGram(Lifted):
    """M (r, d) a running mean of C, V_j (r, r) one of c_j c_jᵀ, c_j the columns of C; so s Y M and s² y_iᵀ V_j y_i are the running
    means of the entries (i, j) of s Y C, the gradient in W's space, and of their squares.

    U = down(pull(F)), F_ij = (s Y M)_ij / (sqrt(s² y_iᵀ V_j y_i / (1 - b2ᵗ)) + eps), gain 1 / (1 - b1ᵗ). F (e, d) is made in pieces,
    with y_iᵀ V_j y_i as a product of (y_i ⊗ y_i) and V_j: no temporary has more than `largest` numbers, or the r² of one row.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    largest: int = 2**22
    first: ClassVar[tuple[str, ...]] = ("m",)
    second: ClassVar[tuple[str, ...]] = ("V",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        (b1, b2), t = self.betas, count(s)
        m = mean(s, "m", b1, C)
        if "V" not in s:
            s["V"] = C.new_zeros(C.shape[1], C.shape[0], C.shape[0])
        s["V"].mul_(b2).addcmul_(C.mT[:, :, None], C.mT[:, None, :], value=1 - b2)
        return m, 1 / (1 - b1**t)

    def lifted(self, frame: Factor, f: Numbers, s: Numbers) -> tuple[Tensor, float]:
        (b1, b2), t, M, V = self.betas, int(s["step"]), s["m"], s["V"].flatten(1)
        pulled, (e, r) = torch.zeros_like(M), f["Y"].shape
        rows = min(e, max(1, self.largest // r**2))
        width = max(1, self.largest // rows)
        for i in range(0, e, rows):
            part = {"Y": f["Y"][i : i + rows]}
            products = (part["Y"][:, :, None] * part["Y"][:, None, :]).flatten(1).mul_(frame.s**2 / (1 - b2**t))
            for j in range(0, M.shape[1], width):
                F = frame.up(part, M[:, j : j + width])
                F /= (products @ V[j : j + width].mT).clamp_min_(0.0).sqrt_().add_(self.eps)
                pulled[:, j : j + width] += frame.pull(part, F)
        return frame.down(f, pulled), 1 / (1 - b1**t)


@dataclass(frozen=True)
class MoveGrams(Move):
    """First moments through C -> R C, the matrices of the second as V_j -> R V_j Rᵀ: the running mean of (R c_j)(R c_j)ᵀ."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        super().__call__(inner, s, move, spread, draw)
        for name in inner.second:
            if name in s:
                V, r = s[name], s[name].shape[-1]
                R = move(torch.eye(r, dtype=V.dtype, device=V.device))
                s[name] = ((V.reshape(-1, r) @ R.mT).view_as(V).mT.reshape(-1, r) @ R.mT).view_as(V)
