"""BD-LoRA: one factor of a LoRA is block-diagonal, so that the parts of a split layer need not talk."""

from __future__ import annotations

from typing import Literal

from ...ops import BlockDiag, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, uniform
from ..factors import divides, positive


@method(paper="arXiv:2510.23346", claims=("serves over several devices without the communication that LoRA adds",))
class BDLoRA(Method):
    """y = W x + b + s B A x, s = alpha / r, with A (side "A") or B (side "B") block-diagonal in k = `nblocks` blocks.

    Side "A": A (k, r/k, n/k), B (m, r), for layers split along their inputs; side "B": A (r, n), B (k, m/k, r/k), for
    layers split along their outputs. Choose the side per pattern: Plan(BDLoRA(), targets=["q_proj", "o_proj"],
    overrides={"o_proj": {"side": "A"}}). Start: B = 0, A ~ U(±1/sqrt n), or U(±sqrt(6 k / n)) where it is block-diagonal.
    Count: r (n / k + m) or r (n + m / k). Exact LoRA rank: r. Source: Wang et al. 2025; start as in HF PEFT.
    Trap: k is the number of devices of the server: r, and the divided side, have to be multiples of it.

    >>> from deltaw.methods import BDLoRA
    >>> {k: v.shape for k, v in BDLoRA(r=4, nblocks=2, side="A").params(10, 6).items()}
    {'A': (2, 2, 3), 'B': (10, 4)}
    """

    r: int = 8
    alpha: float = 8.0
    nblocks: int = 1
    side: Literal["A", "B"] = "B"

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        r, k = self.r, self.nblocks
        positive(r=r)
        divides("nblocks", k, r=r, **({"n": n} if self.side == "A" else {"m": m}))
        if self.side == "A":
            return {"A": Param((k, r // k, n // k), uniform((6 * k / n) ** 0.5)), "B": Param((m, r))}
        return {"A": Param((r, n), kaiming), "B": Param((k, m // k, r // k))}

    def weight(self, W: Op, p: Tensors) -> Op:
        A, B = (BlockDiag(t) if t.dim() == 3 else t for t in (p.A, p.B))
        return W + self.scale * chain(B, A)
