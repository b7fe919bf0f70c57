"""TeRA: a random tensor network of high rank, scaled by vectors."""

from __future__ import annotations

import math

from ...ops import Kron, Op, chain
from ...spec import Declared, Fill, Method, Param, Tensors, constant, method, zeros
from ..factors import positive


def two(size: int) -> tuple[int, int]:
    """size as a product of two whole numbers, as near to each other as they come, the smaller first."""
    low = next(k for k in range(math.isqrt(size), 0, -1) if size % k == 0)
    return low, size // low


def spread(last: bool) -> Fill:
    """N(0, 1 / v), v the size of the last (or the first) half of the axes of the whole tensor."""
    return lambda start, z: start.normal(z, math.prod(z[len(z) // 2 :] if last else z[: len(z) // 2]) ** -0.5)


@method(paper="arXiv:2509.03234", claims=("a vector method's count of parameters, and a high-rank change",))
class TeRA(Method):
    """y = W x + b + (F1 diag(d1) ⊗ F2 diag(d2)) G (F3 diag(d3) ⊗ F4 diag(d4))ᵀ x, m = I1 I2, n = I3 I4, the I of near sizes.

    Trained: d1..d4, d_k (R_k,), R_k = min(r, I_k). Frozen, random, shared by all sites, from `seed`: F_k (I_k, R_k) and
    the core G (R1, R2, R3, R4), here as a matrix R1 R2 x R3 R4; a site reads leading slices.
    Start: d1 = 0, the others d0: the base's first output; entries normal, so that each factor keeps the variance.
    Count: R1 + R2 + R3 + R4. Exact LoRA rank: min(R1 R2, R3 R4). Never builds m x n.
    Source: Gu et al. 2025, whose abstract has frozen shared factors and trained diagonal ones in a Tucker-like network.
    Order 4, the sizes, the place of the diagonals and the start are our reading. Trap: G alone has r⁴ entries.

    >>> from deltaw.methods import TeRA
    >>> {k: v.shape for k, v in TeRA(r=2).params(10, 6).items() if v.train}
    {'d1': (2,), 'd2': (2,), 'd3': (2,), 'd4': (2,)}
    """

    r: int = 32
    d0: float = 1.0
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        sizes = (*two(m), *two(n))
        R = tuple(min(self.r, size) for size in sizes)
        out: Declared = {"G": Param(R, spread(True), False, "model", self.seed)}
        for k in range(4):
            out[f"F{k + 1}"] = Param((sizes[k], R[k]), spread(k < 2), False, "model", self.seed)
            out[f"d{k + 1}"] = Param((R[k],), constant(self.d0) if k else zeros)
        return out

    def weight(self, W: Op, p: Tensors) -> Op:
        left, right = Kron(p.F1 * p.d1, p.F2 * p.d2), Kron(p.F3 * p.d3, p.F4 * p.d4)
        return W + chain(left, p.G.flatten(2).flatten(0, 1), right.T)
