"""Uni-LoRA: every entry of every factor is read from one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Start, Tensors, method, uniform
from ..drawn import runs
from ..factors import positive


@method(paper="arXiv:2506.00799", start="none: theta fills both factors from the start, with about 0.02 / sqrt(D / d)")
class UniLoRA(Method):
    """y = W x + b + B A x, all factors of all sites in one vector phi = P theta, P with one entry in a row and PᵀP = I.

    theta (d,) trained, the only one. The i-th entry of phi is c_j theta_j, j = I_i, c_j = 1 / sqrt(how often j occurs):
    a gather of r (m + n) numbers a step. Each run of d entries of phi uses every j once, in random order, so that the
    counts differ by 1 at most; I (r (m + n),) and c (d,) follow from `seed` and the list of sites, and are not stored.
    Start: theta ~ U(±0.02), not the identity. Count: d in all. Exact LoRA rank: r. Order: A before B, sites as listed.
    Source: Li et al. 2025; HF PEFT shuffles all of phi at once, not in runs. d = 256 is PEFT's, the paper's are larger.
    Trap: other targets mean another P, so I belongs to the plan.

    >>> from deltaw.methods import UniLoRA
    >>> {k: v.shape for k, v in UniLoRA(r=4, d=100).params(10, 6).items()}
    {'theta': (100,), 'c': (100,), 'I': (64,)}
    """

    r: int = 4
    d: int = 256
    seed: int = 42

    def params(self, m: int, n: int) -> Declared:
        return self.laid(m, n, 0, self.r * (m + n))

    def declare(self, site: Site) -> Declared:
        sizes = {s.name: self.r * sum(s.shape) for s in site.peers or [site]}
        first = sum(list(sizes.values())[: list(sizes).index(site.name)])
        return self.laid(*site.shape, first, sum(sizes.values()))

    def laid(self, m: int, n: int, first: int, total: int) -> Declared:
        positive(r=self.r, d=self.d)
        own, scope = self.r * (m + n), f"rank{self.r}"
        of = (total, self.d, self.seed)

        def scales(_: Start, shape: tuple[int, ...]) -> Tensor:
            count = torch.full(shape, float(total // self.d), dtype=torch.float64)
            count[runs(total - total % self.d, total % self.d, *of)] += 1
            return torch.where(count > 0, count.rsqrt(), 0.0)

        theta, c = Param((self.d,), uniform(0.02), scope=scope), Param((self.d,), scales, False, scope, self.seed)
        return {"theta": theta, "c": c, "I": Param((own,), lambda *_: runs(first, own, *of), False, seed=self.seed, dtype=torch.int64)}

    def weight(self, W: Op, p: Tensors) -> Op:
        m, n = W.shape
        A, B = (p.theta * p.c)[p.I].split((self.r * n, m * self.r))
        return W + chain(B.view(m, self.r), A.view(self.r, n))
