"""SLTrain: a weight that is a low-rank product plus a sparse matrix, trained from scratch."""

from __future__ import annotations

from torch import int32

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, uniform, zeros
from ..remade import Remade, Scattered


@method(
    paper="arXiv:2406.02214",
    start="none: W is replaced by a random sparse matrix",
    claims=("nearly full-rank perplexity with 42 to 45 % fewer parameters", "with quantisation 73 % less memory at 7B"),
)
class SLTrain(Method):
    """W' = s B A + scatter(I, v), s = alpha / r: W itself is not used. A (r, n), B (m, r), v (k,) trained, k = floor(delta m n).

    Start: A ~ U(±1/sqrt n), B = 0, v ~ U(±1/sqrt n), I (k,) drawn from the seed, int32, fixed. Count: r (m + n) + k. For many
    tokens W' is formed, used and dropped, and formed again in the backward pass: saved are A, B, v and x, as in the source.
    Source: Han et al. 2024 and its code (r = 128, delta = 0.03, alpha = 32).
    Trap: not for generation, where every token would pass both parts: merge() first. W stays in memory, frozen.

    >>> from deltaw.methods import SLTrain
    >>> {k: p.shape for k, p in SLTrain(r=2, delta=0.1).params(10, 6).items()}
    {'A': (2, 6), 'B': (10, 2), 'v': (6,), 'I': (6,)}
    """

    r: int = 128
    alpha: float = 32.0
    delta: float = 0.03

    scale = property(lambda self: self.alpha / self.r)

    def params(self, m: int, n: int) -> Declared:
        if not 0 < (k := int(self.delta * m * n)) <= m * n:
            raise ShapeError(
                f"delta = {self.delta} of the {m * n} entries of a {m} x {n} weight are {k}; sltrain needs at least one"
            )
        where = Param((k,), lambda start, _: start.choose(k, m * n), train=False, dtype=int32)
        return {
            "A": Param((self.r, n), kaiming),
            "B": Param((m, self.r), zeros),
            "v": Param((k,), uniform(n**-0.5)),
            "I": where,
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return Remade(Scattered(self.scale * chain(p.B, p.A), p.I, p.v))
