"""QR-LoRA: one number for each leading term of a pivoted QR decomposition of W."""

from __future__ import annotations

from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..frames import fits, pivoted_qr


@method(paper="arXiv:2508.21810", claims=("601 numbers match full fine-tuning on several GLUE tasks",))
class QRLoRA(Method):
    """W' = W + sum_{i <= r} lambda_i q_i r_iᵀ = W + Q diag(lambda) R, y = W' x + b; lambda (r,) trained.

    Q (m, r), R (r, n) frozen: the first r terms of W P = Q R P with column pivoting, the columns of R in W's own order.
    Start: lambda = 0, the base's first output (reading: the paper calls it an update). Count: r. Exact LoRA rank: r.
    Source: Liang and Bharadwaj 2025. The paper picks r by energy, 90 to 95 % of R's diagonal; with squares (reading)
    that is `deltaw.methods.frames.energy_rank(W, tau)`, one r for each site by way of the plan's overrides.
    Trap: the rows of R have unequal norms and are not orthogonal, so equal steps of two lambda_i are unequal changes.

    >>> from deltaw.methods import QRLoRA
    >>> [(k, p.shape) for k, p in QRLoRA(r=4).params(10, 6).items() if p.train]
    [('lambda', (4,))]
    """

    r: int = 128

    def params(self, m: int, n: int) -> Declared:
        fits("r", self.r, m, n)

        def rows(start: Start, _: tuple[int, ...]) -> Tensor:  # W = Q R, so R = Qᵀ W: one decomposition is enough
            return start.p.Q.to(start.dense().dtype).mT @ start.dense()

        return {
            "lambda": Param((self.r,)),
            "Q": Param((m, self.r), last(lambda start, _: pivoted_qr(start.dense(), self.r)[0]), train=False),
            "R": Param((self.r, n), last(rows), train=False),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.Q, getattr(p, "lambda"), p.R)
