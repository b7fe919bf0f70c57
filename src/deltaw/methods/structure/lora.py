"""LoRA: low-rank adaptation."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Tensors, method
from ..factors import pair


@method(paper="arXiv:2106.09685", claims=("matches full fine-tuning at well under 1 % of its parameters",))
class LoRA(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n), B (m, r) trained; rank of the update <= r.

    Start: A ~ U(±1/sqrt n), B = 0, so the first output is the base's; on an embedding A = 0 and B ~ N(0, 1), because
    there A is the looked-up table. Trainable per site: r (m + n). Exact LoRA rank: r.
    Source: Hu et al. 2021; start and defaults as in HF PEFT.
    Trap: s multiplies after B. Changing r at fixed alpha changes s; with s = alpha / r the gain of a large r fades
    (see rslora).

    >>> from deltaw.methods import LoRA
    >>> sum(p.shape[0] * p.shape[1] for p in LoRA(r=4).params(10, 6).values())
    64
    """

    r: int = 8
    alpha: float = 8.0

    slots = {"B": 1, "A": 0}

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        return pair(m, n, self.r)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A)
