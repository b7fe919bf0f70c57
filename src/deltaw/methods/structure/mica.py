"""MiCA: LoRA whose up-projection is the weight's minor directions, frozen."""

from __future__ import annotations

from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..factors import positive


def minor(start: Start, shape: tuple[int, ...]) -> Tensor:
    """The left singular vectors of the smallest singular values."""
    start.room(shape[1])
    return start.svd(min(start.W.shape))[0][:, -shape[1] :]


@method(paper="arXiv:2604.01694")
class MiCA(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n) trained; B (m, r) frozen, the r last left singular vectors of W.

    Start: A = 0, the base's first output, with a gradient in A at once. Count: r n. Exact LoRA rank: r.
    Source: HF PEFT 0.21.2, init_lora_weights="mica" (Rüdiger and Raschka 2026, not read); signs of B are fixed here.
    Trap: minor directions are the ill-conditioned ones: in another precision B is another basis of about the same space,
    so B is stored with A. On a wide weight (n > m) the last of all m vectors are taken, on a tall one the last of n.

    >>> from deltaw.methods import MiCA
    >>> {k: (v.shape, v.train) for k, v in MiCA(r=4).params(10, 6).items()}
    {'A': ((4, 6), True), 'B': ((10, 4), False)}
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"A": Param((self.r, n)), "B": Param((m, self.r), last(minor), train=False)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A)
