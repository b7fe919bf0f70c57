"""Compacter: a bottleneck adapter whose two maps are sums of Kronecker products."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...ops import Affine, Kron, Map, Op, add, chain
from ...spec import Declared, Method, Param, Start, Tensors, method, normal, zeros
from ..bent import Activation, Bent
from ..factors import divides, positive


def glorot(start: Start, shape: tuple[int, ...]) -> Tensor:
    """Uniform on ±sqrt(6 / (fan-in + fan-out)) of the rank-one block that a vector (n, size) is half of."""
    return start.uniform(shape, (6.0 / (shape[-1] + 1)) ** 0.5)


@method(
    paper="arXiv:2106.04647",
    start="none: all of A, s and t start at random, A small (0.01), so that the first output is near the base's",
    claims=("0.047 % of T5-base's parameters, on par with full fine-tuning on GLUE",),
)
class Compacter(Method):
    """h' = h + U act(D h + c) + b, h the output of a module; D = sum_i A_i ⊗ s_i t_iᵀ (r, d), U likewise (d, r).

    A (n, n, n), one for all sites and for D and U; per site sD (n, r/n), tD (n, d/n), sU (n, d/n), tU (n, r/n), c (r,), b (d,).
    n must divide r and d. Start: A ~ N(0, 0.01²), s and t Glorot-uniform, c = b = 0. Trainable per site: 3 (r + d), and n³ once
    for the model. Targets as for `Bottleneck`: the two sub-layers (Compacter), or the feed-forward only (Compacter++).
    Not linear: it neither merges nor converts. Source: Karimi Mahabadi et al. 2021 (n = 4).
    Trap: a rank-one block per i does not make D of rank one: A_i ⊗ s tᵀ has the rank of A_i.

    >>> from deltaw.methods import Compacter
    >>> {k: p.shape for k, p in Compacter(r=4, n=2).params(6, 6).items() if k in ("A", "sD", "tD")}
    {'A': (2, 2, 2), 'sD': (2, 2), 'tD': (2, 3)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 24
    n: int = 4
    act: Activation = "gelu"

    def params(self, m: int, n: int) -> Declared:
        positive(n=self.n, r=self.r)
        divides("n", self.n, r=self.r, d=n)
        thin, wide = self.r // self.n, n // self.n
        sizes = {"sD": thin, "tD": wide, "sU": wide, "tU": thin}
        vectors = {word: Param((self.n, size), glorot) for word, size in sizes.items()}
        A = Param((self.n,) * 3, normal(0.01), scope="model")
        return {"A": A, **vectors, "c": Param((self.r,), zeros), "b": Param((n,), zeros)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Bent(L, Affine(phm(p.A, p.sD, p.tD), p.c), Affine(phm(p.A, p.sU, p.tU), p.b), self.act)


def phm(A: Tensor, s: Tensor, t: Tensor) -> Op:
    """sum_i A_i ⊗ s_i t_iᵀ."""
    return add(*[Kron(A[i], chain(s[i, :, None], t[i, None])) for i in range(len(A))])
