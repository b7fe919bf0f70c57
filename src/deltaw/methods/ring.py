"""Tensor rings: matrices whose entries are traces of products of small cores. Indices are row-major."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Op, cost
from ..spec import Fill, Start
from .factors import positive


def split(size: int, D: int) -> tuple[int, ...]:
    """D factors of a size, as even as they divide: each the largest divisor that is not above its share; 1 if need be."""
    positive(D=D)
    out = []
    for d in range(D, 1, -1):
        k = 1
        while (k + 1) ** d <= size:
            k += 1
        out.append(max(j for j in range(1, k + 1) if size % j == 0))
        size //= out[-1]
    return (*out, size)


class Ring(Op):
    """T[i1 … iD, j1 … jD] = tr(A1[i1, j1] … AD[iD, jD]), cores A (I, J, R, R), D >= 2. Applied core by core, the last one
    first, with two bonds beside the vector: the current one and the one that closes the ring."""

    like = property(lambda self: self.cores[0])

    def __init__(self, cores: list[Tensor]):
        self.cores = cores
        self.shape = (math.prod([c.shape[0] for c in cores]), math.prod([c.shape[1] for c in cores]))

    def __call__(self, x: Tensor) -> Tensor:
        cores = [c.to(x.dtype) for c in self.cores]
        first, between, last = cores[0], cores[1:-1], cores[-1]
        N = x.numel() // x.shape[-1]
        y = torch.einsum("npj,ijab->npiab", x.reshape(N, -1, last.shape[1]), last)
        for core in reversed(between):
            y = y.reshape(N, -1, core.shape[1], *y.shape[2:])
            y = torch.einsum("npjkab,ijca->npikcb", y, core).flatten(2, 3)
        y = torch.einsum("njkab,ijba->nik", y, first)
        return y.reshape(*x.shape[:-1], self.shape[0])

    def rmv(self, y: Tensor) -> Tensor:
        return Ring([c.transpose(0, 1) for c in self.cores])(y)

    def cols(self, i: Tensor) -> Tensor:
        return self(F.one_hot(i, self.shape[1]).to(self.like.dtype))


@cost.on(Ring)
def _(op: Ring, tokens: int) -> int:
    R, sizes = op.cores[0].shape[2], [c.shape[0] for c in op.cores]
    return tokens * op.shape[1] * (R * R * (sizes[0] + sizes[-1]) + R**3 * sum(sizes[1:-1]))


def identity(spread: bool, noise: bool) -> Fill:
    """A start of the cores with T = I exactly. spread: I in the slot (1, 1) and, with noise, N(0, 1/I) in rows 2 … R; else
    I / R in every slot."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        eye = torch.eye(shape[0], dtype=torch.float64)[:, :, None, None]
        if not spread:
            return eye.expand(shape) / shape[2]
        core = start.normal(shape, shape[0] ** -0.5) * (torch.arange(shape[2]) > 0)[:, None] * noise
        core[:, :, :1, :1] = eye
        return core

    return fill


def chained(cores: list[Tensor]) -> Tensor:
    """(I1 … ID, R, R): the products C1[i1] … CD[iD] of cores C (I, R, R)."""
    out = cores[0]
    for core in cores[1:]:
        out = torch.einsum("iab,jbc->ijac", out, core).flatten(0, 1)
    return out


def from_identity(cores: list[Tensor]) -> Tensor:
    """|T - I|² of a ring, from its cores alone: what a penalty that keeps the transform near the identity adds to a loss."""
    R = cores[0].shape[2]
    square = eye = torch.eye(R * R, dtype=cores[0].dtype, device=cores[0].device)
    trace = torch.eye(R, dtype=eye.dtype, device=eye.device)
    for c in cores:
        square = square @ torch.einsum("ijab,ijcd->acbd", c, c).reshape(R * R, R * R)
        trace = trace @ torch.einsum("iiab->ab", c)
    return square.trace() - 2.0 * trace.trace() + math.prod([c.shape[0] for c in cores])
