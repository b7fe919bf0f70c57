"""HiRA: the base weight, modulated entrywise by a low-rank matrix."""

from __future__ import annotations

from ...ops import Hadamard, Op, chain
from ...spec import Declared, Method, Tensors, method
from ..factors import pair


@method(paper="(ICLR 2025, OpenReview TwJrTz9cRS)", claims=("a full-rank update at LoRA's cost in parameters",))
class HiRA(Method):
    """W' = W ⊙ (1 + B A), y = W' x + b. A (r, n), B (m, r) trained, r (m + n) per site; no scale factor.

    Start as in LoRA: B = 0, the first output is the base's. The update has rank up to r · rank W, so no plain LoRA
    equals it. Needs the dense W in every forward (a quantised base is decoded) and builds one m x n temporary.
    Source: Huang et al. 2025; start and defaults as in HF PEFT.
    Trap: a zero of W stays zero. PEFT's get_delta_weight returns B A, not the change W ⊙ B A. Two of them on one site
    add their changes of the same W; merging one and then training the other is another model.

    >>> from deltaw.methods import HiRA
    >>> {k: v.shape for k, v in HiRA(r=4).params(10, 6).items()}
    {'A': (4, 6), 'B': (10, 4)}
    """

    r: int = 32

    def params(self, m: int, n: int) -> Declared:
        return pair(m, n, self.r)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + Hadamard(W, chain(p.B, p.A))
