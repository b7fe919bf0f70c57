"""SNELLA: SNELL's update with a richer kernel, its sparsity shared out between the weights in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Dense, Op
from ...spec import Declared, Method, Param, Start, Tensors, method, ones
from ..factors import positive
from ..kernels import contrast, points, survivors
from ..rules.allocate import Allocate


@method(
    paper="arXiv:2510.24037",
    start="none: every entry starts near 1/m², the square of the softmax over m outputs, as in the authors' code",
    claims=("1.8 % above SPT-LoRA on FGVC; 31 to 40 % less memory than earlier sparse tuning",),
)
class SNELLA(Method):
    """W' = W + K ⊙ G, K = D + a softmax(D / γ) + c, the softmax over outputs, D_ij = 0.1 (|Q1_i - P1_j| - |Q2_i - P2_j|).

    Trained: P (2, n, q/2), Q (2, m, q/2), a, gamma (γ), c; q (m + n) + 3 per site. G = |K| without gradient on the V largest |K|,
    else 0. V starts at m n; after every `every` steps (an epoch), T times, a rule shares the entries left by then between
    all sites by importance, down to 1 - sparsity of them. Start: P, Q ~ U(±1/sqrt fan-in), a = γ = 1, c = 0. Full rank, no
    LoRA equals it. Source: Shen et al. 2025 and its code, which averages weights for evaluation and drops whole paths too.
    Trap: their scores take the gradient with the tensors after the step; here it is with those it belongs to.

    >>> from deltaw.methods import SNELLA
    >>> {k: v.shape for k, v in SNELLA(q=4).params(10, 6).items()}
    {'P': (2, 6, 2), 'Q': (2, 10, 2), 'a': (), 'gamma': (), 'c': (), 'V': ()}
    """

    q: int = 8
    sparsity: float = 0.3
    every: int = 100
    T: int = 100

    def params(self, m: int, n: int) -> Declared:
        positive(every=self.every, T=self.T)
        if not 0.0 <= self.sparsity < 1.0:
            raise SpecError(f"snella drops a fraction of [0, 1) of the entries; found sparsity = {self.sparsity}")

        def all_of_them(_: Start, shape: tuple[int, ...]) -> Tensor:
            return torch.full(shape, m * n)

        V = Param((), all_of_them, train=False, dtype=torch.int64, ruled=True)
        return {**points(m, n, self.q), "a": Param((), ones), "gamma": Param((), ones), "c": Param(()), "V": V}

    def rules(self) -> tuple[Any, ...]:
        return (Allocate(sparsity=self.sparsity, every=self.every, T=self.T),)

    def weight(self, W: Op, p: Tensors) -> Op:
        D = 0.1 * contrast(p.Q, p.P)
        K = D + p.a * torch.softmax(D / p.gamma, 0) + p.c
        return W + Dense(K * survivors(K, K.numel() - p.V))
