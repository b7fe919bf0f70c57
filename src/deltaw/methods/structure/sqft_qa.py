"""SQFT's QA-SparsePEFT: the same on a grid of whole numbers, so that its merge is exact in the base's codes."""

from __future__ import annotations

from torch import Tensor

from ...codecs.affine import codes_of, grid, spread
from ...ops import Dense, Op
from ...spec import Declared, Fill, Method, Param, Start, Tensors, kaiming, method
from ..factors import positive


@method(
    paper="arXiv:2410.03750",
    start="none: W is rounded to the grid (exact where it lies on it)",
    claims=("the merged sparse int4 model is the trained one, code by code",),
)
class SQFTQA(Method):
    """W' = s_q (q - z), q = clamp(round((W + (s B A) * M) / s_q + z), 0, 2^bits - 1), s = alpha / r; gradients pass round straight, and
    clamp where it does not bind. s_q, z (m, groups) frozen: the grid of groups of `group` inputs in W as it is at the start; M as W != 0.

    A (r, n), B (m, r) trained; A ~ U(±1/sqrt n), B = 0. 0 is the code z exactly, so zeros stay. `codes(W, p)` are the final whole numbers.
    Count: r (m + n). Costs the m x n product in a forward. Source: Muñoz et al. 2024 and its code (int4, group 128). On an int4 base from
    deltaw.quantise the grid is the codec's own if a group uses both ends of its range. Trap: values far outside the grid saturate at its ends.

    >>> from deltaw.methods import SQFTQA
    >>> {k: p.shape for k, p in SQFTQA(r=4, group=4).params(10, 8).items()}["z"]
    (10, 2)
    """

    r: int = 32
    alpha: float = 64.0
    bits: int = 4
    group: int = 128

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, bits=self.bits, group=self.group)
        size = (m, -(-n // self.group))

        def part(k: int) -> Fill:
            return lambda start, _: grid(start.dense(), self.bits, self.group)[k]

        def kept(start: Start, _: tuple[int, ...]) -> Tensor:
            return (start.dense() != 0).float()

        frozen = {"M": Param((m, n), kept, False), "s_q": Param(size, part(0), False), "z": Param(size, part(1), False)}
        return {"A": Param((self.r, n), kaiming), "B": Param((m, self.r)), **frozen}

    def codes(self, W: Op, p: Tensors) -> Tensor:
        u = W.dense().to(p.B.dtype) + (self.alpha / self.r) * (p.B @ p.A) * p.M
        s, z = (spread(t, self.group, W.shape[1]) for t in (p.s_q, p.z))
        free = (u / s + z).clamp(0, 2**self.bits - 1)
        return free + (codes_of(u, s, z, self.bits) - free).detach()

    def weight(self, W: Op, p: Tensors) -> Op:
        s, z = (spread(t, self.group, W.shape[1]) for t in (p.s_q, p.z))
        return Dense((s * (self.codes(W, p) - z)).to(W.like.dtype))
