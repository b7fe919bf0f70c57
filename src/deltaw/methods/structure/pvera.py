"""PVeRA: VeRA with a random latent vector."""

from __future__ import annotations

from torch import Tensor, eye, randn_like

from ...errors import SpecError
from ...fused import Dropped
from ...ops import Op, as_op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Tensors, constant, method
from ..bases import he
from ..factors import positive


class Noise(Dropped):
    """(mu, logvar) -> mu + exp(logvar / 2) ⊙ e, e ~ N(0, I) drawn anew at every call; as a matrix, its mean: mu."""

    def __init__(self, d: Tensor):
        self.op, self.shape = as_op(d), (d.shape[0] // 2, d.shape[0])

    def __call__(self, z: Tensor) -> Tensor:
        mu, logvar = z.chunk(2, -1)
        return mu + (logvar / 2).exp() * randn_like(mu)

    def dense(self) -> Tensor:
        return eye(*self.shape).to(self.like)


@method(paper="arXiv:2512.07703", claims=("above VeRA and six other adapters on VTAB-1k, and well calibrated",))
class PVeRA(Method):
    """y = W x + b0 + diag(b) B h, h = mu + exp(logvar / 2) ⊙ e in training, e ~ N(0, I); h = mu in evaluation and exports.

    (mu, logvar) = halves of diag(d) A x. A (2r, n), B (m, r) random, frozen, one pair for all sites, made from `seed`.
    Trained: b (m,), d (2r,). Start: A, B ~ U(±sqrt(6 / fan-in)), d = d0, b = 0: the base's first output. A KL penalty is up to the loss.
    Count: m + 2 r. LoRA rank of the mean: r. Source: Fillioux et al. 2025. Trap: in evaluation half of d has no gradient.

    >>> from deltaw.methods import PVeRA
    >>> {k: v.shape for k, v in PVeRA(r=4).params(10, 6).items()}
    {'A': (8, 6), 'B': (10, 4), 'b': (10,), 'd': (8,)}
    """

    r: int = 256
    d0: float = 0.1
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        shapes = {"A": (2 * self.r, n), "B": (m, self.r)}
        frozen = {k: Param(s, he, train=False, scope="model", seed=self.seed) for k, s in shapes.items()}
        return {**frozen, "b": Param((m,)), "d": Param((2 * self.r,), constant(self.d0))}

    def declare(self, site: Site) -> Declared:
        if site.kind == "expert":
            raise SpecError(f"{site.name}: pvera samples from the input, which experts, rebuilt as weights, never see")
        return self.params(*site.shape)

    def weight(self, W: Op, p: Tensors) -> Op:
        mean = chain(p.b, p.B, p.d[: self.r], p.A[: self.r])
        return W + (chain(p.b, p.B, Noise(p.d), p.d, p.A) if p.training else mean)
