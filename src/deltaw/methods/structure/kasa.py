"""KaSA: the noise of the weight makes room for an update with singular values of its own."""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, last, method, normal


def left(start: Start, shape: tuple[int, ...]) -> Tensor:
    U, S, _ = start.svd(min(start.W.shape))
    return (U * S)[:, -shape[1] :]


def right(start: Start, shape: tuple[int, ...]) -> Tensor:
    return start.svd(min(start.W.shape))[2][-shape[0] :]


@method(
    paper="arXiv:2412.06071",
    start="none: the r smallest singular components of W are taken out, as in the paper and in PEFT",
    claims=("better than full fine-tuning and 14 other methods over 16 benchmarks",),
)
class KaSA(Method):
    """W' = W - U0 V0 + s B diag(d) A, s = alpha / r; U0 V0 the r smallest singular components of W, frozen (m, r) (r, n).

    Trained: A (r, n), B (m, r), d (r,). Start: A ~ U(±1/sqrt n), B = 0, d ~ N(0, 1): the base less its noise.
    Count: r (m + n) + r. Exact LoRA rank: 2 r. The base itself is not changed: the noise is a constant kept with the
    delta, and made from W again when a file of HF PEFT is read, which cuts its base instead.
    Source: Wang et al. 2024; as in HF PEFT. The penalties |d|² and |BᵀB - I| + |A Aᵀ - I| belong to a loss.
    Trap: two of them on one site take the noise out twice.

    >>> from deltaw.methods import KaSA
    >>> {k: v.shape for k, v in KaSA(r=4).params(10, 6).items() if v.train}
    {'A': (4, 6), 'B': (10, 4), 'd': (4,)}
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= (r := self.r) < min(m, n):
            raise ShapeError(f"kasa needs 1 <= r < {min(m, n)} at a {m} x {n} weight, or nothing of it is kept; found r = {r}")
        frozen = {"U0": Param((m, r), last(left), train=False), "V0": Param((r, n), last(right), train=False)}
        return {"A": Param((r, n), kaiming), "B": Param((m, r)), "d": Param((r,), normal(1.0)), **frozen}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(-p.U0, p.V0) + self.scale * chain(p.B, p.d, p.A)
