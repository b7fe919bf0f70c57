"""PSOFT: an orthogonal map inside the principal subspace of W."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method, ones


@method(paper="arXiv:2505.11235", claims=("keeps what W means, yet adapts, at low cost: over 35 tasks",))
class PSOFT(Method):
    """y = W x + b + B (R - I) A x, R = diag(beta) C diag(alpha), C = (I + Q)(I - Q)⁻¹ orthogonal, Q = skew(q).

    Frozen: B (m, r) = U_r S_r, A (r, n) = V_rᵀ of W = U S Vᵀ. Trained: q (r(r-1)/2), Q's upper triangle by rows, beta (r,)
    and alpha (r,). C = I + 2 Q (I - Q)⁻¹, so R - I is computed without cancellation.
    Start: q = 0, beta = alpha = 1: R = I, the base's first output. Per site r(r-1)/2 + 2 r. Exact LoRA rank: r.
    Source: Wu et al. 2026, its relaxed form, as HF PEFT's defaults; while alpha = beta = 1, angles are kept exactly.
    Trap: PEFT's psoft_alpha / r divides B and multiplies the delta, so it has no effect and is no field here.

    >>> from deltaw.methods import PSOFT
    >>> {k: p.shape for k, p in PSOFT(r=4).params(10, 6).items() if p.train}
    {'q': (6,), 'beta': (4,), 'alpha': (4,)}
    """

    r: int = 32

    def params(self, m: int, n: int) -> Declared:
        r = self.r
        if not 2 <= r <= min(m, n):
            raise ShapeError(f"psoft turns 2 <= r <= {min(m, n)} singular directions of a {m} x {n} weight; found r = {r}")

        def left(start: Start, _: tuple[int, ...]) -> Tensor:
            U, S, _V = start.svd(r)
            return U * S

        return {
            "q": Param((r * (r - 1) // 2,)),
            "beta": Param((r,), ones),
            "alpha": Param((r,), ones),
            "A": Param((r, n), last(lambda start, _: start.svd(r)[2]), train=False),
            "B": Param((m, r), last(left), train=False),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        i, j = torch.triu_indices(self.r, self.r, 1, device=p.q.device)
        upper = p.q.new_zeros(self.r, self.r).index_put((i, j), p.q)
        Q = upper - upper.mT
        eye = torch.eye(self.r, dtype=Q.dtype, device=Q.device)
        turn = torch.linalg.solve(eye - Q, 2.0 * Q, left=False)  # C - I
        change = p.beta[:, None] * turn * p.alpha + torch.diag(p.beta * p.alpha - 1.0)
        return W + chain(p.B, change, p.A)
