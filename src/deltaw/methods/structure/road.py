"""RoAd: rotations of pairs of outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...ops import Affine, Map, Op, as_op, chain
from ...spec import Declared, Method, Param, Tensors, method, ones
from ..factors import divides


class Swap(Op):
    """The exchange of the two halves of every group of g entries: a symmetric permutation."""

    like = property(lambda self: self.one)

    def __init__(self, g: int, like: Tensor):
        self.g, self.one, self.shape = g, like, (like.shape[0], like.shape[0])

    def __call__(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, 2, self.g // 2)).flip(-2).flatten(-3)

    rmv = __call__


@method(paper="arXiv:2409.00119", start="rounding", claims=("mixed batches are served faster than with LoRA",))
class RoAd(Method):
    """y = R (W x + b), R z = c1 ⊙ z + c2 ⊙ turn(z), c1 = alpha cos theta, c2 = alpha sin theta; W' = R W, b' = R b.

    In each group of g = `group_size` outputs entry j is paired with entry j + g/2; turn: (a, b) -> (-b, a) on pairs.
    theta, alpha trained: (m/2,) in road_1, one a pair; (m,) in road_2, one an entry; (2m,) in road_4, in each group
    first those of c1, then of c2.
    Start: theta = 0, alpha = 1. Count: m, 2m or 4m. Source: Liao and Monz 2024; layout as in HF PEFT.
    Trap: it acts on the bias too; R is a rotation only in road_1 with alpha = 1.

    >>> from deltaw.methods import RoAd
    >>> [RoAd(variant=v).params(128, 64)["theta"].shape for v in ("road_1", "road_2", "road_4")]
    [(64,), (128,), (256,)]
    """

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: int = 64

    def params(self, m: int, n: int) -> Declared:
        divides("group_size", self.group_size, m=m)
        divides("2", 2, group_size=self.group_size)
        size = ({"road_1": m // 2, "road_2": m, "road_4": 2 * m}[self.variant],)
        return {"theta": Param(size), "alpha": Param(size, ones)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        m, g, h = L.op.shape[0], self.group_size, self.group_size // 2
        both = [t.reshape(m // g, -1).repeat(1, 2 * m // t.numel()) for t in (p.theta, p.alpha)]
        theta, alpha = (t.reshape(m // g, 2, g) for t in both)  # index 0 for c1, 1 for c2
        c1, c2 = alpha[:, 0] * theta[:, 0].cos(), alpha[:, 1] * theta[:, 1].sin()
        turned = torch.cat((-c2[:, :h], c2[:, h:]), 1).flatten()
        R = as_op(c1.flatten()) + chain(turned, Swap(g, turned))
        return Affine(chain(R, L.op), None if L.bias is None else R(L.bias.to(c1.dtype)))
