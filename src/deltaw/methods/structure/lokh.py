"""LoKH: a Khatri-Rao product of two low-rank matrices."""

from __future__ import annotations

import math

from ...ops import Kron, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2408.05883", claims=("rank r² from r (m1 + m2 + 2 n) numbers",))
class LoKH(Method):
    """y = W x + b + s D x, s = alpha / r; column j of D is (B1 A1)_j ⊗ (B2 A2)_j, the column-wise Khatri-Rao product.

    B1 (m1, r), B2 (m2, r), A1, A2 (r, n), all trained; m = m1 m2, as balanced as m allows. Equal to
    D = (B1 ⊗ B2) (A1 • A2) with • the same product of A1 and A2, (r², n): that is how it is applied, for
    r² n + r² m1 + r m operations a token. Exact LoRA rank: r². Count: r (m1 + m2 + 2 n).
    Start: B2 = 0, the others ~ U(±1/sqrt fan-in); the first output is the base's.
    Source: Lu 2024, section on LoKH, known to us from its summary: which factors carry m1 and m2 is a reading, as is
    the scale. Trap: an m that is prime leaves m1 = 1, and B1 A1 then only scales columns.

    >>> from deltaw.methods import LoKH
    >>> {k: v.shape for k, v in LoKH(r=2).params(12, 5).items()}
    {'A1': (2, 5), 'A2': (2, 5), 'B1': (3, 2), 'B2': (4, 2)}
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        m1 = max(d for d in range(1, math.isqrt(m) + 1) if m % d == 0)
        A, B1, B2 = (self.r, n), (m1, self.r), (m // m1, self.r)
        return {"A1": Param(A, kaiming), "A2": Param(A, kaiming), "B1": Param(B1, kaiming), "B2": Param(B2)}

    def weight(self, W: Op, p: Tensors) -> Op:
        A = (p.A1[:, None] * p.A2).flatten(0, 1)
        return W + self.scale * chain(Kron(p.B1, p.B2), A)
