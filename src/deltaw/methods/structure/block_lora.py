"""Block-LoRA: rank blocks that share one down-projection."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import divides, down, positive, up


@method(paper="arXiv:2501.16720", claims=("competitive few-shot CLIP tuning, fewer trained parameters and operations than LoRA",))
class BlockLoRA(Method):
    """y = W x + b + s (B_1 + … + B_k) A x, s = alpha / r. A (r/k, n), the head; B (k, m, r/k), the k arms; all trained.

    LoRA's B A = sum_i B_i A_i over k blocks of its rank, with all A_i equal: the arms are added once a step, and a token
    costs (r/k)(m + n). Start: A ~ U(±1/sqrt n), B = 0: the base's first output. Trained per site: m r + n r/k.
    Exact LoRA rank: r/k. Source: Zhou et al. 2025; the sum is in its abstract, start, r, alpha and k = 8 (the title's
    eight arms) are our reading.
    Trap: it adds no rank. The arms get the same gradient, so from B = 0 they stay equal for ever, and one step of SGD
    moves their sum k times as far as it would move LoRA's B: a learning rate in disguise.

    >>> from deltaw.methods import BlockLoRA
    >>> {k: v.shape for k, v in BlockLoRA(r=8, k=4).params(10, 6).items()}
    {'A': (2, 6), 'B': (4, 10, 2)}
    """

    r: int = 16
    alpha: float = 16.0
    k: int = 8

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, k=self.k)
        divides("k", self.k, r=self.r)
        rank = self.r // self.k
        return {"A": Param((rank, n), down), "B": Param((self.k, m, rank), up)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B.sum(0), p.A)
