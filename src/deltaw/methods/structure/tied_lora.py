"""Tied-LoRA: one pair of factors for all layers of a kind, and two vectors for each."""

from __future__ import annotations

from dataclasses import replace

from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Tensors, method, ones
from ..bases import role
from ..factors import down, positive, up


@method(paper="arXiv:2311.09578", claims=("close to LoRA with a fraction of its parameters, most of all at high rank",))
class TiedLoRA(Method):
    """y = W x + b0 + s diag(v) B diag(u) A x, s = alpha / r. A (r, n), B (m, r) tied: sites of one role and shape share them.

    The role is the last word of a site's name (every "q_proj", say). u (r,), v (m,) for each site. All are trained, the
    paper's configuration vBuA; with A and B frozen and random it would be VeRA.
    Start: A as LoRA's, B = 0, u = v = 1: the base's first output. Count: r (m + n) a role, m + r a site. Exact LoRA rank: r.
    Source: Renduchintala et al. 2024, which ties the fused QKV projection; the scale is our reading, as LoRA's.
    Trap: A and B sum the gradients of all their sites, so their best rate falls with the depth of the model.

    >>> from deltaw.methods import TiedLoRA
    >>> {k: (v.shape, v.scope) for k, v in TiedLoRA(r=4).params(10, 6).items()}
    {'A': ((4, 6), 'model'), 'B': ((10, 4), 'model'), 'u': ((4,), 'site'), 'v': ((10,), 'site')}
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        tied = {"A": Param((self.r, n), down, scope="model"), "B": Param((m, self.r), up, scope="model")}
        return {**tied, "u": Param((self.r,), ones), "v": Param((m,), ones)}

    def declare(self, site: Site) -> Declared:
        (m, n), own = site.shape, self.params(*site.shape)
        scope = f"{role(site.name)}-{m}x{n}-{self.r}"
        return own | {k: replace(own[k], scope=scope) for k in "AB"}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.v, p.B, p.u, p.A)
