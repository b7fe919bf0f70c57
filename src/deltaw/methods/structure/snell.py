"""SNELL: a sparse update whose entries are kernel distances between few points."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Dense, Op
from ...spec import Declared, Method, Param, Tensors, method, uniform

KAPPA = 0.1


def distances(Q: Tensor, P: Tensor) -> Tensor:
    """|Q_i - P_j| for every i and j, from the differences: the expansion through products loses digits of small ones."""
    return torch.cdist(Q, P, compute_mode="donot_use_mm_for_euclid_dist")


def survivors(K: Tensor, sparsity: float) -> Tensor:
    """|K| where it is among the largest, 0 at the floor(sparsity · size) others; no gradient passes through it."""
    size = K.detach().abs()
    dropped = int(sparsity * K.numel())
    return size if not dropped else size * (size > size.flatten().kthvalue(dropped).values)


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
    are set per task there. Trap: a gate of zeros and ones is another method: at sparsity = 0 the gate is |K|, not 1.

    >>> from deltaw.methods import SNELL
    >>> {k: v.shape for k, v in SNELL(q=4).params(10, 6).items()}
    {'P': (2, 6, 2), 'Q': (2, 10, 2)}
    """

    q: int = 8
    sparsity: float = 0.3

    def params(self, m: int, n: int) -> Declared:
        if self.q < 2 or self.q % 2 or not 0.0 <= self.sparsity < 1.0:
            raise SpecError(f"snell needs an even q >= 2 and sparsity in [0, 1); found q = {self.q}, {self.sparsity}")
        h = self.q // 2
        return {k: Param((2, w, h), uniform((w * h) ** -0.5)) for k, w in (("P", n), ("Q", m))}

    def weight(self, W: Op, p: Tensors) -> Op:
        near, far = distances(p.Q, p.P)
        K = KAPPA * (near - far)
        return W + Dense(K * survivors(K, self.sparsity))
