"""MiSS: one small matrix, repeated over shards of the inputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import divides


class Tile(Op):
    """T (r, n) = [I_r I_r …] cut after n columns: sums of the inputs that are equal modulo r."""

    constant, like = True, property(lambda self: self.kept)

    def __init__(self, r: int, n: int, like: Tensor):
        self.kept, self.shape = like, (r, n)

    def __call__(self, x: Tensor) -> Tensor:
        r, n = self.shape
        return F.pad(x, (0, -n % r)).unflatten(-1, (-1, r)).sum(-2)

    def rmv(self, y: Tensor) -> Tensor:
        r, n = self.shape
        return y.repeat(*(1,) * (y.dim() - 1), -(-n // r))[..., :n]

    def cols(self, i: Tensor) -> Tensor:
        return F.one_hot(i % self.shape[0], self.shape[0]).to(self.kept.dtype)


@method(paper="arXiv:2409.15371", claims=("one zero matrix learns faster than LoRA's two, at its memory and less time",))
class MiSS(Method):
    """W' = W + Dᵀ T, T = [I_r I_r …] (r, n): W'[o, j] = W[o, j] + D[j mod r, o]. D (r, m) trained; DiSHA, "Bone" in PEFT.

    x is summed in shards: n additions and m r operations a token. Start: D = 0, the base's first output; D has a gradient
    at once. Count: r m. Exact LoRA rank: r. mini_r = q > 0 repeats D (r, q) along the outputs too ("mini"): r q numbers.
    Source: the paper; defaults as in HF PEFT. r need not divide n.
    Trap: the shard is the fast axis, j mod r, not j // (n / r). There is no scale: r changes the size of a step.

    >>> from deltaw.methods import MiSS
    >>> MiSS(r=4).params(10, 6)["D"].shape, MiSS(r=4, mini_r=5).params(10, 6)["D"].shape
    ((4, 10), (4, 5))
    """

    r: int = 64
    mini_r: int = 0

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.r <= n:
            raise ShapeError(f"miss needs shards of 1 <= r <= {n} inputs; found r = {self.r}")
        divides("mini_r", self.mini_r or m, m=m)
        return {"D": Param((self.r, self.mini_r or m))}

    def weight(self, W: Op, p: Tensors) -> Op:
        D = chain(p.D.mT, Tile(self.r, W.shape[1], p.D))
        return W + (chain(Tile(self.mini_r, W.shape[0], p.D).T, D) if self.mini_r else D)
