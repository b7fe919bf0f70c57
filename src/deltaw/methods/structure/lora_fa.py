"""LoRA-FA: LoRA with A frozen at its random start."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2308.03303", claims=("LoRA's quality with fewer activations kept: r numbers a token instead of n",))
class LoRAFA(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n) frozen at its random start, B (m, r) trained.

    B's gradient needs A x only, so x is not kept for it. Start: A ~ U(±1/sqrt n) at every site for itself, B = 0: the
    base's first output. Trained per site: r m. Exact LoRA rank: r. Source: Zhang et al. 2023; start as in HF PEFT.
    Trap: the paper freezes A and no more; the preconditioned gradient of HF PEFT's `create_lorafa_optimizer` is an update
    rule. On an embedding A is random too, where LoRA's would be zero: a frozen zero never learns.

    >>> from deltaw.methods import LoRAFA
    >>> [name for name, p in LoRAFA(r=4).params(10, 6).items() if p.train]
    ['B']
    """

    r: int = 8
    alpha: float = 8.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {"A": Param((self.r, n), kaiming, train=False), "B": Param((m, self.r))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A)
