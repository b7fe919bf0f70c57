"""DLRT: a weight as U S Vᵀ whose rank is found during training, by the KLS integrator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method


@method(
    paper="arXiv:2205.13571",
    start="none: W is cut to rank r",
    claims=("finds ranks during training", "a descent bound free of small singular values", "over 80 % compression"),
)
class DLRT(Method):
    """W' = U S Vᵀ, U (m, 2k), S (2k, 2k), V (n, 2k), k = min(r_max, min(m, n) // 2); W itself is not used. At first U, V are the
    r leading singular vectors of W and S its singular values, the other columns 0; at most k columns outlast a step.

    Gradients of U and V are those of K = U S and L = V Sᵀ: G V and Gᵀ U, G = dL/dW', from one backward pass; that of S is
    Uᵀ G V. Made for Plan("dlrt", update="dlrt"), which makes steps with them. Count: 2k (m + n + 2k) kept, half of it in use.
    Source: Schotthöfer et al. 2022. Trap: another update rule takes the gradients for what they are not, and lets U and V
    lose their orthogonality. A forward costs what rank 2k costs, whatever the rank; W stays in memory until merge().

    >>> from deltaw.methods import DLRT
    >>> DLRT(r=2, r_max=3).params(10, 6)["S"].shape
    (6, 6)
    """

    r: int = 32
    r_max: int = 64

    def params(self, m: int, n: int) -> Declared:
        k = min(self.r_max, min(m, n) // 2)
        if not 0 < self.r <= k:
            raise ShapeError(f"dlrt doubles its rank in a step: 1 <= r <= {k} at {m} x {n}; found r = {self.r}")

        def part(which: int) -> Any:
            def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
                U, S, V = start.svd(self.r)
                t = (U, torch.diag(S), V.mT)[which]
                return torch.nn.functional.pad(t, (0, shape[1] - self.r, 0, shape[0] - t.shape[0]))

            return last(fill)

        return {"U": Param((m, 2 * k), part(0)), "S": Param((2 * k, 2 * k), part(1)), "V": Param((n, 2 * k), part(2))}

    def weight(self, W: Op, p: Tensors) -> Op:
        U, V = p.U.detach(), p.V.detach()
        zero = chain(p.U - U, V.mT) + chain(U, (p.V - V).mT)  # through it the gradients of K and L come
        return chain(U, p.S, V.mT) + zero
