"""C3A: a block-circulant update, applied as circular convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fft

from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method, normal, uniform, zeros
from ..factors import divides
from ..transforms import wide


class Circulant(Op):
    """Blocks (i, j) of entries w[i, j, (q - p) mod b] at (p, q): y_i = sum_j the circular correlation of x_j with w_ij."""

    like = property(lambda self: self.w)

    def __init__(self, w: Tensor):
        self.w, self.shape = w, (w.shape[0] * w.shape[2], w.shape[1] * w.shape[2])

    def _blocks(self, rule: str, x: Tensor, w: Tensor) -> Tensor:
        z = torch.einsum(rule, w, fft.rfft(wide(x).unflatten(-1, (-1, self.w.shape[2]))))
        return fft.irfft(z, self.w.shape[2]).flatten(-2).to(x.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._blocks("ijf,...jf->...if", x, fft.rfft(self.w).conj())

    def rmv(self, y: Tensor) -> Tensor:
        return self._blocks("ijf,...if->...jf", y, fft.rfft(self.w))

    def dense(self) -> Tensor:
        p = torch.arange(self.w.shape[2], device=self.w.device)
        return self.w[:, :, (p - p[:, None]) % len(p)].transpose(1, 2).reshape(self.shape)


@method(paper="arXiv:2407.19342", start="none: w ~ U(±sqrt(6 / (m + n))), as in PEFT; init='zeros' is the identity")
class C3A(Method):
    """W' = W + (1 / n) blocks circ(w_ij), w (m/b, n/b, b) trained; n log b + m log b + m n / b operations a token.

    Count: m n / b; rank up to min(m, n). Source: Chen et al. 2024; start and defaults as in HF PEFT.
    Trap: divided by n, not by b. PEFT 0.21.2 gives its input the gradient of the reversed kernels, so it trains otherwise.

    >>> from deltaw.methods import C3A
    >>> C3A(b=2).params(10, 6)["w"].shape
    (5, 3, 2)
    """

    b: int = 256
    init: Literal["xavier_uniform", "kaiming_uniform", "gaussian", "zeros"] = "xavier_uniform"

    def params(self, m: int, n: int) -> Declared:
        divides("block size b", self.b, m=m, n=n)
        fills = {"xavier_uniform": uniform((6 / (m + n)) ** 0.5), "kaiming_uniform": uniform(n**-0.5), "zeros": zeros}
        return {"w": Param((m // self.b, n // self.b, self.b), fills.get(self.init, normal(1.0)))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + Circulant(p.w / W.shape[1])
