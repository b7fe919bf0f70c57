"""SHiRA: a sparse update at fixed positions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, int64

from ...errors import ShapeError
from ...ops import Dense, Op
from ...spec import Declared, Method, Param, Start, Tensors, method


class Sparse(Op):
    """Values v (K,) at different flat positions i (K,) of an m x n zero matrix."""

    like, entries = property(lambda self: self.v), property(lambda self: (self.i, self.v))

    def __init__(self, i: Tensor, v: Tensor, shape: tuple[int, int]):
        self.i, self.v, self.shape = i, v, shape

    def __call__(self, x: Tensor) -> Tensor:
        m, n = self.shape
        if 4 * len(self.i) * (x.numel() // n) > m * n:  # many tokens: gathering is slower there, and larger
            return Dense(self.dense())(x)
        y = x[..., self.i % n] * self.v
        return y.new_zeros(*x.shape[:-1], m).index_add(-1, self.i // n, y).to(x.dtype)

    def dense(self) -> Tensor:
        return self.v.new_zeros(self.shape).flatten().index_copy(0, self.i, self.v).view(self.shape)


@method(paper="arXiv:2406.13175", claims=("no cost at inference, fast switching, less concept loss when fused",))
class SHiRA(Method):
    """W' = W + scatter(I, v): v (K,) trained, I (K,) frozen flat positions in W, K = r (m + n) as in LoRA.

    mask: "random" positions, or "wm", the largest |W|. Start: v = 0, the base's first output. No plain LoRA equals it.
    Source: Bhardwaj et al. 2024; "random" as in HF PEFT. Trap: I is chosen once, before training, then stored (int64).

    >>> from deltaw.methods import SHiRA
    >>> SHiRA(r=2).params(10, 6)["v"].shape
    (32,)
    """

    r: int = 32
    mask: Literal["random", "wm"] = "random"

    def params(self, m: int, n: int) -> Declared:
        if not 0 < (K := self.r * (m + n)) <= m * n:
            raise ShapeError(f"r = {self.r} asks for {K} of the {m * n} positions of a {m} x {n} weight")

        def where(start: Start, _: tuple[int, ...]) -> Tensor:
            if self.mask == "random":
                return start.choose(K, m * n)
            return start.dense().abs().flatten().sort(descending=True, stable=True).indices[:K].sort().values

        return {"v": Param((K,)), "I": Param((K,), where, train=False, dtype=int64)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + Sparse(p.I, p.v, W.shape)
