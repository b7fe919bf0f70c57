"""TinyLoRA: a handful of numbers between the singular vectors of W."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Start, Tensors, last, method, normal
from ..bases import seed_at
from ..factors import positive


@method(paper="arXiv:2602.04118", claims=("reinforcement learning works with as few as 13 trained numbers",))
class TinyLoRA(Method):
    """y = W x + b + B R A x, R = sum_i v_i P_i. v (u,) trained; frozen A (r, n) = √S_r V_rᵀ, B (m, r) = U_r √S_r of W.

    P (u, r, r) ~ N(0, 1/r) from `seed` and the name of the site, the same in every run. Start: v = 0, the base's output.
    scope: "site" gives every site its own v; sites with any other equal word share one (overrides make groups).
    Count: u for each v. Exact LoRA rank: r. No scale. Source: Morris et al. 2026; √S on both sides and P as in HF PEFT.
    Trap: PEFT seeds P by the number of a module in the enumeration, so other targets mean another P; its files hold P.

    >>> from deltaw.methods import TinyLoRA
    >>> {k: v.shape for k, v in TinyLoRA(r=2, u=13).params(10, 6).items()}
    {'v': (13,), 'P': (13, 2, 2), 'A': (2, 6), 'B': (10, 2)}
    """

    r: int = 2
    u: int = 64
    seed: int = 42
    scope: str = "site"

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, u=self.u)
        if self.r > min(m, n):
            raise ShapeError(f"r = {self.r} is more than the {min(m, n)} singular values of a {m} x {n} weight")

        def root(start: Start, left: bool) -> Tensor:
            U, S, V = start.svd(self.r)
            return U * S.sqrt() if left else S.sqrt()[:, None] * V

        return {
            "v": Param((self.u,), scope=self.scope),
            "P": Param((self.u, self.r, self.r), normal(self.r**-0.5), train=False, seed=self.seed),
            "A": Param((self.r, n), last(lambda start, _: root(start, False)), train=False),
            "B": Param((m, self.r), last(lambda start, _: root(start, True)), train=False),
        }

    def declare(self, site: Site) -> Declared:
        own = self.params(*site.shape)
        return own | {"P": replace(own["P"], seed=seed_at(site, self.seed))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.B, torch.einsum("u,uij->ij", p.v, p.P), p.A)
