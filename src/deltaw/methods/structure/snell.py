"""SNELL: a sparse update whose entries are kernel distances between few points."""

from __future__ import annotations

from ...errors import SpecError
from ...ops import Dense, Op
from ...spec import Declared, Method, Tensors, method
from ..kernels import contrast, points, survivors


@method(
    paper="arXiv:2411.01800",
    start="none: the distances between random points are small and not zero, as in the authors' code",
    claims=("a sparse update of full rank with LoRA's memory for parameters and optimiser",),
)
class SNELL(Method):
    """W' = W + K ⊙ G, K_ij = 0.1 (|Q1_i - P1_j| - |Q2_i - P2_j|): P (2, n, q/2), Q (2, m, q/2) trained points.

    G = |K| where |K| is among the (1 - sparsity) m n largest, else 0, without gradient: a survivor is sign(K) K².
    Start: P, Q ~ U(±1/sqrt fan-in), fan-in n q/2 and m q/2. Trained per site: q (m + n). Rank up to min(m, n), no LoRA
    equals it; K is built in every forward, q m n operations a step. Source: Shen et al. 2024 and its code; q and sparsity
    are set per task there. Trap: a gate of zeros and ones is another method: at sparsity = 0 it is still |K| (their code then
    has none).

    >>> from deltaw.methods import SNELL
    >>> {k: v.shape for k, v in SNELL(q=4).params(10, 6).items()}
    {'P': (2, 6, 2), 'Q': (2, 10, 2)}
    """

    q: int = 8
    sparsity: float = 0.3

    def params(self, m: int, n: int) -> Declared:
        if not 0.0 <= self.sparsity < 1.0:
            raise SpecError(f"snell drops a fraction of [0, 1) of the entries; found sparsity = {self.sparsity}")
        return points(m, n, self.q)

    def weight(self, W: Op, p: Tensors) -> Op:
        K = 0.1 * contrast(p.Q, p.P)
        return W + Dense(K * survivors(K, int(self.sparsity * K.numel())))
