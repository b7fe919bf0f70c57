"""Fast fixed transforms as operators (cosine, Walsh-Hadamard, Haar), and the sparse coefficients that stand between them.

A transform is applied in float32 at least: half precision has no FFT, and a butterfly would round at every step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from ..ops import Dense, Op, cost
from ..spec import Fill, Param, Start


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positions(key: str, k: int, m: int, n: int, seed: int) -> Param:
    """k different flat positions i·n + j in an m x n matrix, frozen: the first of torch's own permutation for a seed.

    torch's generator and not ours: HF PEFT draws them so and stores only the seed. Equal shapes have equal positions.
    """
    if not 1 <= k <= m * n:
        raise ShapeError(f"{key} wants k = {k} coefficients; a {m} x {n} weight has 1 to {m * n} of them")
    return Param((k,), drawn(seed, m * n), train=False, seed=seed, dtype=torch.int64)


def drawn(seed: int, total: int) -> Fill:
    def fill(_: Start, shape: tuple[int, ...]) -> Tensor:
        return torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")[: shape[0]]

    return fill


class Coefficients(Op):
    """Values v (k,) at rows i and columns j of an m x n zero matrix; values at the same place add up."""

    like = property(lambda self: self.v)

    def __init__(self, v: Tensor, i: Tensor, j: Tensor, shape: tuple[int, int]):
        self.v, self.i, self.j, self.shape = v, i, j, shape

    def __call__(self, x: Tensor) -> Tensor:
        m, n = self.shape
        if crowded(x, len(self.v), m * n):
            return Dense(self.dense())(x)
        y = x[..., self.j] * self.v.to(x.dtype)
        return y.new_zeros(*x.shape[:-1], m).index_add(-1, self.i, y)

    def rmv(self, y: Tensor) -> Tensor:
        return Coefficients(self.v, self.j, self.i, (self.shape[1], self.shape[0]))(y)

    def dense(self) -> Tensor:
        return self.v.new_zeros(self.shape[0] * self.shape[1]).index_add(0, self.i * self.shape[1] + self.j, self.v).view(self.shape)


def crowded(x: Tensor, k: int, size: int) -> bool:
    """Many tokens: a matrix product is faster there than gathering k entries of each, and keeps less for backward."""
    return 4 * k * (x.numel() // x.shape[-1]) > size


class Spectrum(Op):
    """Re ifft2 of Coefficients: (1 / mn) sum_t v_t cos(2π (i_t p / m + j_t q / n)) at (p, q), by two short FFTs."""

    like = property(lambda self: self.v)

    def __init__(self, v: Tensor, i: Tensor, j: Tensor, shape: tuple[int, int]):
        self.v, self.i, self.j, self.shape = v, i, j, shape

    def __call__(self, x: Tensor) -> Tensor:
        m, n = self.shape
        if crowded(x, len(self.v), m * n):
            return Dense(self.dense())(x)
        y = torch.fft.ifft(wide(x))[..., self.j] * self.v
        y = y.new_zeros(*x.shape[:-1], m).index_add(-1, self.i, y)
        return torch.fft.ifft(y).real.to(x.dtype)

    def rmv(self, y: Tensor) -> Tensor:
        return Spectrum(self.v, self.j, self.i, (self.shape[1], self.shape[0]))(y)

    def dense(self) -> Tensor:
        return torch.fft.ifft2(Coefficients(self.v, self.i, self.j, self.shape).dense()).real


class Transform(Op):
    """A fixed n x n matrix with a fast product. `like` gives it a device and a dtype; nothing of it is read."""

    constant, like = True, property(lambda self: self.kept)

    def __init__(self, n: int, like: Tensor):
        self.kept, self.shape = like, (n, n)

    def cols(self, i: Tensor) -> Tensor:
        unit = i.unsqueeze(-1) == torch.arange(self.shape[1], device=i.device)
        return self(unit.to(self.kept.dtype))


class Between(Op):
    """left · S · right, S sparse: a matrix written in fixed bases. left None is the identity."""

    like = property(lambda self: self.S.like)

    def __init__(self, left: Op | None, S: Coefficients, right: Op):
        self.left, self.S, self.right = left, S, right
        self.shape = ((S if left is None else left).shape[0], right.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        y = self.S(self.right(x))
        return y if self.left is None else self.left(y)

    def rmv(self, y: Tensor) -> Tensor:
        return self.right.rmv(self.S.rmv(y if self.left is None else self.left.rmv(y)))

    def dense(self) -> Tensor:
        rows = self.right.rmv(self.S.dense())
        return rows if self.left is None else self.left(rows.mT).mT

    def cols(self, i: Tensor) -> Tensor:
        y = self.S(self.right.cols(i))
        return y if self.left is None else self.left(y)


class Cosine(Transform):
    """The orthonormal DCT-II: C[k, j] = sqrt(2/n) cos(π k (2j + 1) / 2n), row 0 divided by sqrt 2; through one FFT."""

    def phase(self, x: Tensor) -> Tensor:
        n = self.shape[0]
        angle = torch.arange(n, dtype=x.dtype, device=x.device) * (math.pi / (2 * n))
        size = torch.full((n,), math.sqrt(2.0 / n), dtype=x.dtype, device=x.device)
        return torch.polar(F.pad(size[1:], (1, 0), value=math.sqrt(1.0 / n)), angle)

    def __call__(self, x: Tensor) -> Tensor:
        v = wide(x)
        v = torch.cat((v[..., ::2], v[..., 1::2].flip(-1)), -1)
        return (torch.fft.fft(v) * self.phase(v).conj()).real.to(x.dtype)

    def rmv(self, y: Tensor) -> Tensor:
        n, u = self.shape[0], wide(y)
        v = torch.fft.ifft(u * self.phase(u), norm="forward").real
        even, odd = v[..., : (n + 1) // 2], v[..., (n + 1) // 2 :].flip(-1)
        odd = F.pad(odd, (0, n % 2))
        return torch.stack((even, odd), -1).flatten(-2)[..., :n].to(y.dtype)


class Walsh(Transform):
    """A ±1 matrix H with H Hᵀ = n I: P ⊗ H_2 ⊗ … ⊗ H_2, P of Paley's order (1 where n is a power of 2), its index slow."""

    def _apply(self, x: Tensor, turn: bool) -> Tensor:
        n = self.shape[0]
        base, y = paley(n), wide(x)
        half = n // len(base) // 2
        y = y.reshape(*x.shape[:-1], len(base), -1)
        while half:
            a, b = y.unflatten(-1, (-1, 2, half)).unbind(-2)
            y = torch.stack((a + b, a - b), -2).flatten(-3)
            half //= 2
        if len(base) > 1:
            P = torch.tensor(base, dtype=y.dtype, device=y.device)
            y = (y.mT @ (P if turn else P.mT)).mT
        return y.flatten(-2).to(x.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x, False)

    def rmv(self, y: Tensor) -> Tensor:
        return self._apply(y, True)


def paley(n: int) -> list[list[int]]:
    """A ±1 matrix with orthogonal rows of the smallest order K for which n / K is a power of 2: Paley's first
    construction (K = q + 1, q = 3 mod 4) or second (K = 2 (q + 1), q = 1 mod 4), q a prime."""
    K = n
    while K > 2 and K % 8 == 0:
        K //= 2
    if K in (1, 2, 4):
        return [[1]]
    while K <= n:
        for q, twice in ((K - 1, False), (K // 2 - 1, True)):
            if K % 4 == 0 and q % 4 == (1 if twice else 3) and all(q % d for d in range(2, math.isqrt(q) + 1)):
                return _paley(q, twice)
        K *= 2
    raise ShapeError(
        f"no Walsh-Hadamard transform of size {n} is known here: a power of 2, or that times an order of Paley's (12, 20, "
        "28, 36, 44, 60, 68, 84, 108, 124, 140, 148, …), is needed"
    )


def _paley(q: int, twice: bool) -> list[list[int]]:
    squares = {a * a % q for a in range(1, q)}
    chi = [0] + [1 if a in squares else -1 for a in range(1, q)]
    side = 1 if twice else -1
    Q = [[0] + [1] * q] + [[side] + [chi[(i - j) % q] for j in range(q)] for i in range(q)]
    if not twice:
        return [[c + (i == j) for j, c in enumerate(row)] for i, row in enumerate(Q)]
    rows: list[list[int]] = []
    for row in Q:  # 0 becomes (1 -1; -1 -1), c becomes c (1 1; 1 -1)
        for a in (0, 1):
            rows.append([v for c in row for v in ((c, -c if a else c) if c else ((-1, -1) if a else (1, -1)))])
    return rows


class Haar(Transform):
    """One level of the inverse Haar transform, h averages then h differences -> n values, h = n / 2 rounded up;
    orthonormal, but for an odd n, where the last of n + 1 values is cut off."""

    def __init__(self, n: int, like: Tensor):
        self.kept, self.shape = like, (n, n + n % 2)

    def __call__(self, x: Tensor) -> Tensor:
        low, high = x.unflatten(-1, (2, -1)).unbind(-2)
        y = torch.stack((low + high, low - high), -1) * math.sqrt(0.5)
        return y.flatten(-2)[..., : self.shape[0]]

    def rmv(self, y: Tensor) -> Tensor:
        left, right = F.pad(y, (0, self.shape[1] - self.shape[0])).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat((left + right, left - right), -1) * math.sqrt(0.5)


@cost.on(Coefficients)
def _(op: Coefficients, tokens: int) -> int:
    return tokens * len(op.v)


@cost.on(Transform)
def _(op: Transform, tokens: int) -> int:
    return tokens * op.shape[0] * op.shape[0].bit_length() * 4  # a complex multiplication is four real ones


@cost.on(Between)
def _(op: Between, tokens: int) -> int:
    return cost(op.right, tokens) + cost(op.S, tokens) + (0 if op.left is None else cost(op.left, tokens))


@cost.on(Spectrum)
def _(op: Spectrum, tokens: int) -> int:
    return 4 * tokens * (len(op.v) + sum(size * size.bit_length() for size in op.shape))
