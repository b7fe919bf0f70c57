"""AdaLoRA's structure: a delta in the form of a singular value decomposition."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method, normal
from ..factors import positive


@method(paper="arXiv:2303.10512", claims=("better than a uniform rank at small budgets (with its schedule)",))
class AdaLoRA(Method):
    """y = W x + b0 + s P diag(E) Q x, s = alpha / (r + 1e-5). P (m, r), E (r,), Q (r, n) trained; rank of the update <= r.

    Start: P, Q ~ N(0, 0.02²), E = 0: the base's first output. Trained per site: r (m + n + 1). Exact LoRA rank: r.
    The paper's penalty, which keeps P and Q near orthonormal, is a term of the loss:
    gamma * methods.penalties.orthonormality(adapted.trainable()). Its schedule, which sets the least important E to zero, is
    not part of the structure; a pruned direction is an E of 0, and s stays that of the first r.
    Source: Zhang et al. 2023; start, scale and defaults as in HF PEFT (init_r).
    Trap: without the penalty E is no set of singular values. r counts the directions before pruning.

    >>> from deltaw.methods import AdaLoRA
    >>> {k: v.shape for k, v in AdaLoRA(r=4).params(10, 6).items()}
    {'P': (10, 4), 'E': (4,), 'Q': (4, 6)}
    """

    r: int = 12
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / (self.r + 1e-5)

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"P": Param((m, self.r), normal(0.02)), "E": Param((self.r,)), "Q": Param((self.r, n), normal(0.02))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.P, p.E, p.Q)
