"""Dropout in front of an operator, from a seed: what backward needs of the mask is drawn again, never kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Op


def draw() -> int:
    """A seed from torch's default generator: torch.manual_seed fixes it and gradient checkpointing repeats it."""
    return int(torch.randint(2**62, ()))


def mask(x: Tensor, p: float, seed: int) -> Tensor:
    """1 with probability 1 - p, else 0, in the shape and dtype of x; the same for the same seed, on the same machine."""
    generator = torch.Generator(x.device)
    generator.manual_seed(seed)
    return torch.empty_like(x).bernoulli_(1.0 - p, generator=generator)


class Dropped(Op):
    """op(dropout(x)), drawn anew at every call; as a matrix, its mean: op itself."""

    like = property(lambda self: self.op.like)

    def __init__(self, op: Op, p: float):
        self.op, self.p, self.shape = op, p, op.shape

    def before(self, x: Tensor) -> Tensor:
        """Each entry is dropped with probability p. A convolution does this to its input, not to its patches."""
        if torch.compiler.is_compiling() or x.device.type == "meta":
            return torch.dropout(x, self.p, True)
        return x * mask(x, self.p, draw()).mul_(1.0 / (1.0 - self.p))

    def __call__(self, x: Tensor) -> Tensor:
        return self.op(self.before(x))

    def dense(self) -> Tensor:
        return self.op.dense()

    def cols(self, i: Tensor) -> Tensor:
        return self.op.cols(i)
