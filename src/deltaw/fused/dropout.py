"""Dropout in front of an operator, from a seed: what backward needs of the mask is drawn again, never kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Op


def draw() -> int:
    """A seed from torch's default generator: torch.manual_seed fixes it and gradient checkpointing repeats it."""
    return int(torch.randint(2**62, ()))


INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes as a floating-point number
STEPS = 2**15  # the probability of keeping an entry is a multiple of 1 / STEPS


def keeps(p: float) -> int:
    """In how many of STEPS cases an entry is kept; STEPS / keeps(p) is the exact factor that makes up for the rest."""
    return max(round((1.0 - p) * STEPS), 1)


def mask(x: Tensor, p: float, seed: int) -> Tensor:
    """All bits set where an entry of x is kept, none where it is dropped, as integers of the width of x's numbers; the
    same for the same seed, shape and machine. Fifteen random bits an entry, four entries from one drawn word."""
    generator = torch.Generator(x.device)
    generator.manual_seed(seed)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits.bitwise_and_(STEPS - 1).sub_(keeps(p)).bitwise_right_shift_(15)  # negative, so all ones, where below
    return kept.to(INTEGER[x.element_size()])


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where it is kept, 0 elsewhere; not differentiable, not scaled."""
    return x.contiguous().view(mask.dtype).bitwise_and(mask).view(x.dtype)


def noise(x: Tensor, p: float, seed: int) -> Tensor:
    """What dropout multiplies x with."""
    return (mask(x, p, seed) != 0).to(x.dtype) * (STEPS / keeps(p))


class Dropped(Op):
    """op(dropout(x)), drawn anew at every call; as a matrix, its mean: op itself."""

    like = property(lambda self: self.op.like)

    def __init__(self, op: Op, p: float):
        self.op, self.p, self.shape = op, p, op.shape

    def before(self, x: Tensor) -> Tensor:
        """Each entry is dropped with probability p. A convolution does this to its input, not to its patches."""
        if torch.compiler.is_compiling() or x.device.type == "meta":
            return torch.dropout(x, self.p, True)
        return x * noise(x, self.p, draw())

    def __call__(self, x: Tensor) -> Tensor:
        return self.op(self.before(x))

    def dense(self) -> Tensor:
        return self.op.dense()

    def cols(self, i: Tensor) -> Tensor:
        return self.op.cols(i)
