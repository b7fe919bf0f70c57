"""DeLoRA: directions of length 1 and one trained strength that bounds the update."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, constant, kaiming, last, method, zeros
from ..factors import positive


def column_norms(start: Start, _: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(start.dense(), dim=0)


@method(paper="arXiv:2503.18225", claims=("robust to the learning rate and to long training: the distance is bounded",))
class DeLoRA(Method):
    """W' = W + (l / r) sum_i (b_i / |b_i|) (a_i / |a_i|)ᵀ diag(w), a_i the rows of A (r, n), b_i the columns of B (m, r).

    Trained: A, B and the strength l (1,), started at `strength`; w (n,), frozen, the norms of W's columns. Norms below
    1e-4 count as 1e-4. So |(W' - W) diag(w)⁻¹|_F <= |l| in all training. Count: r (m + n) + 1. Exact LoRA rank: r.
    Start: B = 0 and A ~ U(±1/sqrt n): the base's first output, as in HF PEFT. twin=True is the paper's own start: B is
    drawn too, and the update at the start is taken off again by frozen copies A0, B0 (the bound and the rank are doubled).
    Source: Bini et al. 2025; w is HF PEFT's reading of the paper's |W|. Trap: B = 0 is within the clamp: b_i grows 1e4-fold until |b_i| = 1e-4. l may
    change its sign. w belongs to the base as it was: merging something else first is another model.

    >>> from deltaw.methods import DeLoRA
    >>> {k: v.shape for k, v in DeLoRA(r=4).params(10, 6).items()}
    {'A': (4, 6), 'B': (10, 4), 'l': (1,), 'w': (6,)}
    """

    r: int = 8
    strength: float = 15.0
    twin: bool = False

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        out: Declared = {"A": Param((self.r, n), kaiming), "B": Param((m, self.r), kaiming if self.twin else zeros)}
        out |= {"l": Param((1,), constant(self.strength)), "w": Param((n,), last(column_norms), train=False)}
        if self.twin:
            out["A0"] = Param((self.r, n), last(lambda start, _: start.p.A), train=False)
            out["B0"] = Param((m, self.r), last(lambda start, _: start.p.B), train=False)
        return out

    def change(self, B: Tensor, A: Tensor, strength: Tensor | float, w: Tensor) -> Op:
        sizes = torch.linalg.vector_norm(A, dim=1).clamp(min=1e-4) * torch.linalg.vector_norm(B, dim=0).clamp(min=1e-4)
        return chain(B, strength / self.r / sizes, A, w)

    def weight(self, W: Op, p: Tensors) -> Op:
        moved = W + self.change(p.B, p.A, p.l, p.w)
        return moved + self.change(-p.B0, p.A0, self.strength, p.w) if self.twin else moved
