"""DEFT: a subspace of the outputs is taken out of the weight, and something else is put in."""

from __future__ import annotations

from torch import Tensor

from ...ops import Op
from ...spec import Declared, Method, Param, Start, Tensors, last, method, normal
from ..subspace import Edited, Kind, fits, pair


@method(paper="(HF PEFT, DEFT)", start="rounding")
class DEFT(Method):
    """W' = W - Q Kᵀ W + s Q R = W + Q (s R - Kᵀ W). P (m, r) and R (r, n) trained, (Q, K) made of P by `decomposition`.

    "relu": Q = P, K = relu(P). "qr": Q = K = the orthonormal factor of P, so that Q Kᵀ projects. s = alpha / r; alpha = 0
    stands for s = 1. y = z + Q (s R x - Kᵀ z) with z = W x: r (2 m + n) operations a token, no dense W.
    Start: P ~ N(0, 0.02²), R = Kᵀ W / s: the base up to rounding. Count: r (m + n). Exact LoRA rank: r.
    Source: HF PEFT 0.21.2, its choices and defaults; without R it is `para`.
    Trap: the subspace is removed from the base's W: after merging, W is another. The signs of Q depend on the QR routine,
    and R with them. PEFT cuts r to m silently; here it is refused.

    >>> from deltaw.methods import DEFT
    >>> {k: v.shape for k, v in DEFT(r=4).params(10, 6).items()}
    {'P': (10, 4), 'R': (4, 6)}
    """

    r: int = 8
    alpha: float = 0.0
    decomposition: Kind = "relu"

    @property
    def scale(self) -> float:
        return self.alpha / self.r if self.alpha else 1.0

    def params(self, m: int, n: int) -> Declared:
        fits("deft", self.r, m)

        def what_is_there(start: Start, _: tuple[int, ...]) -> Tensor:
            return start.W.rmv(pair(start.p.P, self.decomposition)[1].mT) / self.scale

        return {"P": Param((m, self.r), normal(0.02)), "R": Param((self.r, n), last(what_is_there))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return Edited(W, *pair(p.P, self.decomposition), self.scale * p.R)
