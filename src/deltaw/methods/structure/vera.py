"""VeRA: one frozen random pair for the whole model, scaled by trained vectors."""

from __future__ import annotations

import math

from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, constant, method
from ..factors import positive


def he(start: Start, shape: tuple[int, ...]) -> Tensor:
    """U(±sqrt(6 / fan-in)), the fan-in of the whole shared tensor."""
    return start.uniform(shape, math.sqrt(6.0 / shape[-1]))


@method(paper="arXiv:2310.11454", claims=("LoRA's quality on GLUE with an order of magnitude fewer parameters",))
class VeRA(Method):
    """y = W x + b0 + diag(b) B diag(d) A x. A (r, n), B (m, r) random, frozen, one pair for all sites; b (m,), d (r,).

    The pair is as large as the largest site wants; a site reads A[:, :n] and B[:m]. It is made from `seed` alone.
    Start: A, B ~ U(±sqrt(6 / fan-in)), d = d0, b = 0: the first output is the base's. Trained per site: m + r.
    Exact LoRA rank: r. Source: Kopiczko et al. 2023; start and defaults as in HF PEFT (another generator, so other bits).
    Trap: the fan-in is that of the SHARED A: one wider target makes the delta smaller at every site.

    >>> from deltaw.methods import VeRA
    >>> {k: v.shape for k, v in VeRA(r=4).params(10, 6).items() if v.train}
    {'b': (10,), 'd': (4,)}
    """

    r: int = 256
    d0: float = 0.1
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {
            "A": Param((self.r, n), he, train=False, scope="model", seed=self.seed),
            "B": Param((m, self.r), he, train=False, scope="model", seed=self.seed),
            "b": Param((m,)),
            "d": Param((self.r,), constant(self.d0)),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.b, p.B, p.d, p.A)
