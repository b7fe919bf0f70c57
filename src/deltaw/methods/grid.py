"""Image tokens on their grid: what a low-rank change needs to look at neighbours and at spectra."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from ..ops import Affine, Map, as_op
from ..spec import Start


def fan_in(start: Start, shape: tuple[int, ...]) -> Tensor:
    """Uniform on ±1/sqrt(fan-in) for the kernel of a convolution."""
    return start.uniform(shape, math.prod(shape[1:]) ** -0.5)


def columns(tokens: int, width: int) -> int:
    """How many tokens make a row of the grid: `width`, or (0) the most even way to cut them into rows."""
    if width and tokens % width:
        raise ShapeError(f"{tokens} image tokens do not fill rows of {width}: mend `width`, or `prefix` for the others")
    return width or tokens // max(d for d in range(1, math.isqrt(tokens) + 1) if tokens % d == 0)


def spectral(z: Tensor, K: Tensor, K_f: Tensor) -> Tensor:
    """F(S(z)) of z (N, H, W, r): S z = z + K * z, F s = the real part of IFFT2(K_f * FFT2(s)), real and imaginary channels
    one after the other; both convolutions keep the size and pad with zeros."""
    s = z.movedim(-1, 1)
    s = s + F.conv2d(s, K.to(s.dtype), padding="same")
    f = torch.fft.fft2(s.to(torch.promote_types(s.dtype, torch.float32)))  # there are no transforms in half precision
    both = torch.cat((f.real, f.imag), 1)
    real, imag = F.conv2d(both, K_f.to(both.dtype), padding="same").to(both.dtype).chunk(2, 1)
    return torch.fft.ifft2(torch.complex(real, imag)).real.movedim(1, -1).to(z.dtype)


class Gridded(Map):
    """y = L(x) + W_d F(S(W_e x)): x (batch, H, W, n), or (…, tokens, n) row by row after `prefix` tokens off the grid."""

    mixes_tokens = True  # an output depends on the other tokens of its image

    def __init__(self, L: Affine, W_d: Tensor, W_e: Tensor, kernels: tuple[Tensor, Tensor], prefix: int, width: int):
        self.L, self.W_d, self.W_e, self.kernels = L, as_op(W_d), as_op(W_e), kernels
        self.prefix, self.width = prefix, width

    def moved(self, z: Tensor) -> Tensor:
        if z.dim() == 4:
            return spectral(z, *self.kernels)
        flat = z.reshape(-1, z.shape[-2] if z.dim() > 1 else 1, z.shape[-1])
        head, image = flat[:, : self.prefix], flat[:, self.prefix :]
        if image.shape[1]:
            image = image.unflatten(1, (-1, columns(image.shape[1], self.width)))
            image = spectral(image, *self.kernels).flatten(1, 2)
        return torch.cat((head, image), 1).reshape(z.shape)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.L(x)
        return y + self.W_d(self.moved(self.W_e(x)).to(y.dtype))

    def cols(self, i: Tensor) -> Tensor:
        y = self.L.cols(i)
        return y + self.W_d(self.moved(self.W_e.cols(i)).to(y.dtype))
