"""SMoRA: every rank-one term is an expert, chosen for each token by a router of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Map, as_op
from ...sites import Site
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive
from ..routing import Slotted, of_vectors


@method(paper="arXiv:2501.15103", claims=("one term an expert beats a few experts of several terms at the same active rank",))
class SMoRA(Method):
    """y = W x + b + (alpha / k) B (g * A x). p = sigmoid(R x), each number for q terms in a row; p' = p + d; g_i = k p'_i / (sum of the k
    largest p') for those k, 0 for the others. A (r, n), B (m, r), R (r / q, n) trained; d (r,) is moved by the rule balance: after every
    step d_i gains u where term i saw fewer tokens than the mean, and loses u where more.

    Start: A ~ U(±1/sqrt n), B = 0, d = 0: the base's first output. Count: r (m + n + n / q). Not mergeable. Source: Zhao et al. 2025 and its
    code. Differs: d moves once an optimiser step, by the counts of all its micro-batches and processes (the code: every forward, so a
    recomputed one twice). Trap: d is part of the weight, not of the choice alone; sums of p' are kept above 1e-6.

    >>> from deltaw.methods import SMoRA
    >>> {k: p.shape for k, p in SMoRA(r=8, k=2, q=2).params(10, 6).items()}
    {'A': (8, 6), 'B': (10, 8), 'R': (4, 6), 'd': (8,), 'c': (8,)}
    """

    r: int = 64
    k: int = 8
    alpha: float = 16.0
    q: int = 1
    u: float = 1e-3

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, k=self.k, q=self.q)
        if self.k > self.r or self.r % self.q:
            raise SpecError(f"smora chooses k <= r terms in groups of q that divide r; found k = {self.k}, r = {self.r}, q = {self.q}")
        moved = {name: Param((self.r,), train=False, ruled=True) for name in "dc"}
        return {"A": Param((self.r, n), kaiming), "B": Param((m, self.r)), "R": Param((self.r // self.q, n), kaiming), **moved}

    def declare(self, site: Site) -> Declared:
        return self.params(*of_vectors(site, "smora"))

    def layer(self, L: Affine, p: Tensors) -> Map:
        def weigh(x: Tensor, z: Tensor) -> Tensor:
            share = torch.sigmoid(as_op(p.R)(x).to(p.R.dtype)).repeat_interleave(self.q, -1) + p.d
            top = share.topk(self.k, -1)
            picked = torch.zeros_like(share).scatter(-1, top.indices, 1.0)
            return self.alpha * picked * share / top.values.sum(-1, keepdim=True).clamp(min=1e-6)

        return Slotted(L, p.B, p.A, weigh, p.c if p.training else None)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["balance"](self.u),)
