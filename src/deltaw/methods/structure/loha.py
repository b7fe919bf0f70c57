"""LoHa: the entrywise product of two low-rank matrices."""

from __future__ import annotations

from ...ops import Hadamard, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2309.14859", claims=("rank up to r² with the parameters of two LoRAs of rank r",))
class LoHa(Method):
    """y = W x + b + s ((B1 A1) ⊙ (B2 A2)) x, s = alpha / r. A1, A2 (r, n), B1, B2 (m, r), all trained.

    Start: A2 = 0, the others ~ U(±1/sqrt fan-in); the first output is the base's. Trained per site: 2 r (m + n).
    Exact LoRA rank: r² (Khatri-Rao). A convolution is taken as its flat m x (n k k) matrix.
    Source: LyCORIS, Yeh et al. 2023, after FedPara (arXiv:2108.06098); start and defaults as in HF PEFT.
    Trap: both B = 0 (seen in forks) would be a saddle: no tensor ever gets a gradient. Nor is this the product of the
    two activations (B1 A1 x) ⊙ (B2 A2 x).

    >>> from deltaw.methods import LoHa
    >>> sorted(LoHa(r=4).params(10, 6))
    ['A1', 'A2', 'B1', 'B2']
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        A, B = (self.r, n), (m, self.r)
        return {"A1": Param(A, kaiming), "B1": Param(B, kaiming), "A2": Param(A), "B2": Param(B, kaiming)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * Hadamard(chain(p.B1, p.A1), chain(p.B2, p.A2))
