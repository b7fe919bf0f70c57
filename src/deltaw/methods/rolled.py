"""A low-rank square matrix with its rows rolled, row i by i places: of full rank in general, still 2 d r numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import Op


class Rolled(Op):
    """F[i, j] = (B A)[i, (j - i) mod d], B (d, r), A (r, d): the sum over k of diag(B[:, k]) circ(A[k]).

    Few tokens go through r FFTs each, r d log d operations; for many F is built once, d² r, and multiplied, d² a token.
    """

    like = property(lambda self: self.B)

    def __init__(self, B: Tensor, A: Tensor):
        self.B, self.A, self.shape = B, A, (B.shape[0], B.shape[0])

    def _few(self, x: Tensor) -> bool:
        d, r = self.B.shape
        tokens = x.numel() // d
        return tokens * r * 10 * math.ceil(math.log2(d) + 1) < d * (tokens + r)  # an FFT takes about 5 log2(d) a number

    def __call__(self, x: Tensor) -> Tensor:
        if not self._few(x):
            return torch.nn.functional.linear(x, self.dense().to(x.dtype))
        a, z = torch.fft.rfft(self.A), torch.fft.rfft(x.to(self.A.dtype))
        y = torch.fft.irfft(a.conj() * z.unsqueeze(-2), n=len(self.B))  # (..., r, d): circ(A[k]) x
        return (y * self.B.mT).sum(-2).to(x.dtype)

    def rmv(self, y: Tensor) -> Tensor:
        if not self._few(y):
            return y @ self.dense().to(y.dtype)
        a, z = torch.fft.rfft(self.A), torch.fft.rfft(y.to(self.A.dtype).unsqueeze(-2) * self.B.mT)
        return torch.fft.irfft((a * z).sum(-2), n=len(self.B)).to(y.dtype)

    def dense(self) -> Tensor:
        i = torch.arange(len(self.B), device=self.B.device)
        return (self.B @ self.A).gather(1, (i[None, :] - i[:, None]) % len(self.B))
