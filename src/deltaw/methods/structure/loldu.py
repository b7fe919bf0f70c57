"""LoLDU: the diagonal of an LDU decomposition of W is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..frames import fits


@method(paper="arXiv:2410.13618", claims=("up to 2600 times fewer trained parameters at comparable scores",))
class LoLDU(Method):
    """W' = W + s L diag(z) U, y = W' x + b, s = alpha / r. z (r,) trained; L (m, r), U (r, n) frozen, W = L D U.

    LU with partial pivoting: L is unit lower triangular with its rows put back in W's order (P L in the paper), U has
    a unit diagonal, both cut at r. z is the change of the diagonal: the paper trains z0 + z and takes s L diag(z0) U out
    of W, so whatever start z0 is given (of D, its mean, noise like it) cancels, and W' = W at z = 0, bit for bit.
    Count: r. Exact LoRA rank: r. r (m + n) operations a token. Source: Shi et al. 2024; alpha = 1 as in its code,
    which takes r = 768 for layers of that width.
    Trap: its starts of a fixed range (ones, zeros, U(-1, 1), N(0, 1)) do not cancel in the code: it takes out D.

    >>> from deltaw.methods import LoLDU
    >>> [(k, p.shape) for k, p in LoLDU(r=4).params(10, 6).items() if p.train]
    [('z', (4,))]
    """

    r: int = 128
    alpha: float = 1.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        fits("r", self.r, m, n)

        def lower(start: Start, _: tuple[int, ...]) -> Tensor:
            P, L, _U = torch.linalg.lu(start.dense())
            return P @ L[:, : self.r]

        def upper(start: Start, _: tuple[int, ...]) -> Tensor:
            U = torch.linalg.lu(start.dense()).U[: self.r]
            D = U.diagonal()[:, None]
            return torch.where(D == 0, torch.eye(*U.shape, dtype=U.dtype, device=U.device), U / D)  # W of low rank

        return {
            "z": Param((self.r,)),
            "L": Param((m, self.r), last(lower), train=False),
            "U": Param((self.r, n), last(upper), train=False),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.L, p.z, p.U)
