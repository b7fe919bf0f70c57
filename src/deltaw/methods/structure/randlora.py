"""RandLoRA: a full-rank change as a sum of scaled random low-rank bases."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, constant, method
from ..bases import unit
from ..factors import positive


@method(paper="arXiv:2502.00987", claims=("narrows LoRA's gap to full fine-tuning, most in vision-language tasks",))
class RandLoRA(Method):
    """y = W x + b + s sum_j B_j diag(Lambda_j) A diag(Gamma_j) x, j = 1..N, s = alpha / r, p = min(m, n), N = ceil(p / r).

    A (r, p) and B (max(m, n), N, r) are random, frozen, one of each for all sites, made from `seed`; a site reads leading
    slices. Trained: Lambda (r, N), Gamma (N, p). Where n > m the sum is used transposed.
    Applied as two products of inner size N r, 2 (m + n) p a token and no m x n temporary: no cheaper than a dense change.
    Start: Lambda = 0, Gamma = 1 / max(N, p): the base's first output. Count: N (r + p), fewer with a LARGER r.
    As plain LoRA exact at rank N r >= p only. Source: Albert et al. 2025; A, B uniform with variance 1.
    Trap: as in HF PEFT, whose files this reads, row (k, j) of the scaled A meets column k N + j of B flattened, so B_j takes
    its columns from several blocks where N != r. They are all independent: the law of the sum is the paper's.

    >>> from deltaw.methods import RandLoRA
    >>> {k: v.shape for k, v in RandLoRA(r=4).params(10, 6).items()}
    {'A': (4, 6), 'B': (10, 2, 4), 'Lambda': (4, 2), 'Gamma': (2, 6)}
    """

    r: int = 32
    alpha: float = 640.0
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        p, q, N = min(m, n), max(m, n), -(-min(m, n) // self.r)
        frozen = {"A": (self.r, p), "B": (q, N, self.r)}
        shared = {k: Param(s, unit, train=False, scope="model", seed=self.seed) for k, s in frozen.items()}
        return {**shared, "Lambda": Param((self.r, N)), "Gamma": Param((N, p), constant(1.0 / max(N, p)))}

    def weight(self, W: Op, p: Tensors) -> Op:
        rows = (p.Lambda[:, :, None] * (self.scale * p.A[:, None, :]) * p.Gamma).flatten(0, 1)  # (r N, p)
        change = chain(p.B.flatten(1), rows)
        return W + (change if W.shape[1] <= W.shape[0] else change.T)
