"""Bone in its first form, "Bat": every block of the weight is multiplied by a small matrix, which is also added."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Dense, Op
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import divides


class BlockAffine(Op):
    """(W_ij + I) D_i over the r x r blocks (i, j) of W, D (m / r, r, r). Needs W as a matrix."""

    like = property(lambda self: self.D)

    def __init__(self, W: Op, D: Tensor):
        self.W, self.D, self.shape = W, D, W.shape

    def blocks(self, dtype: torch.dtype) -> Tensor:
        return self.W.dense().to(dtype).reshape(len(self.D), self.D.shape[1], -1, self.D.shape[1])  # (i, a, j, b)

    def __call__(self, x: Tensor) -> Tensor:
        r = self.D.shape[1]
        if x.numel() // x.shape[-1] >= r // 2:  # building costs m n r, doing without it 2 m n a token
            return Dense(self.dense())(x)
        D, z = self.D.to(x.dtype), x.unflatten(-1, (-1, r))
        moved = torch.einsum("iab,...jb->...ija", D, z)
        y = torch.einsum("iajb,...ijb->...ia", self.blocks(x.dtype), moved)
        return (y + torch.einsum("iab,...b->...ia", D, z.sum(-2))).flatten(-2)

    def dense(self) -> Tensor:
        D = self.D[:, None]
        return (self.blocks(D.dtype).transpose(1, 2) @ D + D).transpose(1, 2).reshape(self.shape)


@method(paper="arXiv:2409.15371", claims=("converges faster than LoRA and PiSSA at the same count",))
class BoneBat(Method):
    """W'_ij = W_ij + (W_ij + I) D_i on r x r blocks, i the block of outputs; D (m / r, r, r) trained, r m numbers.

    Start: D = 0, the base's first output. Full rank, so no plain LoRA equals it. A forward rebuilds the weight, m n r
    operations a step, or applies the blocks, 2 m n a token, where there are few tokens; it needs the dense W either way.
    Source: the first version of the paper that became MiSS; HF PEFT's MissConfig(init_weights="bat").
    Trap: D_i belongs to the outputs and multiplies from the side of the inputs. Two of them on one site add their changes
    of the same W here; PEFT applies the second to what the first has made.

    >>> from deltaw.methods import BoneBat
    >>> BoneBat(r=2).params(10, 6)["D"].shape
    (5, 2, 2)
    """

    r: int = 64

    def params(self, m: int, n: int) -> Declared:
        divides("r", self.r, m=m, n=n)
        return {"D": Param((m // self.r, self.r, self.r))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + BlockAffine(W, p.D)
