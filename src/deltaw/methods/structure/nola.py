"""NOLA: both low-rank factors are mixtures of random matrices that are drawn anew whenever they are needed."""

from __future__ import annotations

from dataclasses import replace

from torch import int64

from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..bases import seed_at
from ..drawn import mixture
from ..factors import positive


@method(paper="arXiv:2310.02556", claims=("goes below the size of a rank-1 LoRA; half of it at equal quality",))
class NOLA(Method):
    """y = W x + b + s B A x, A = A0 + sum_i alpha_i A_i, B = sum_j beta_j B_j, s = alpha / r. A (r, n), B (m, r).

    Trained: the vectors alpha (k,), beta (k,). The 2 k bases are never stored: z (2,) seeds them. Generating costs k r (m + n) a step.
    Start: A0 as LoRA's A, alpha = beta = 0: the base's first output. Count: 2 k. Exact LoRA rank: r.
    Source: Koohpayegani et al. 2024, as its GPT code; a file is the coefficients and the seed.
    Trap: the ViT code has no A0; there two zero starts would never learn.

    >>> from deltaw.methods import NOLA
    >>> sum(p.shape[0] for p in NOLA(r=4, k=100).params(10, 6).values() if p.train)
    200
    """

    r: int = 8
    k: int = 1024
    alpha: float = 1.0
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, k=self.k)
        A0 = Param((self.r, n), kaiming, train=False, seed=self.seed)
        z = Param((2,), lambda start, shape: start.uniform(shape, 2.0**62), False, seed=self.seed, dtype=int64)
        return {"A0": A0, "z": z, "alpha": Param((self.k,)), "beta": Param((self.k,))}

    def declare(self, site: Site) -> Declared:
        seed = seed_at(site, self.seed)
        return {k: replace(p, seed=seed) if not p.train else p for k, p in self.params(*site.shape).items()}  # type: ignore

    def weight(self, W: Op, p: Tensors) -> Op:
        A = p.A0 + mixture(p.alpha, p.z[0], self.r, W.shape[1])
        B = mixture(p.beta, p.z[1], W.shape[0], self.r)
        return W + self.scale * chain(B, A)
