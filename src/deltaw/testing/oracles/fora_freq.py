"""FoRA: the branches one by one, the Fourier transforms as matrices (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.fora_freq import FoRA

METHODS = (FoRA(r=2), FoRA(r=3, width=1))


def transform(N: int, sign: float) -> Tensor:
    """The matrix of a Fourier transform of length N, in complex numbers."""
    k = torch.arange(N, dtype=torch.float64)
    return torch.polar(torch.ones(N, N, dtype=torch.float64), sign * 2 * torch.pi * torch.outer(k, k) / N)


def around(z: Tensor, K: Tensor) -> Tensor:
    """out[o, h, w] = sum of K[o, c, a, b] z[c, h + a - k // 2, w + b - k // 2] where that is inside."""
    _, H, W = z.shape
    half, out = K.shape[2] // 2, []
    for h in range(H):
        for w in range(W):
            taps = [
                K[:, :, a + half, b + half] @ z[:, h + a, w + b]
                for a in range(-half, half + 1)
                for b in range(-half, half + 1)
                if 0 <= h + a < H and 0 <= w + b < W
            ]
            out.append(torch.stack(taps).sum(0))
    return torch.stack(out, 1).reshape(-1, H, W)


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    z = x @ p["W_e"].mT
    head, rest = z[:, : method.prefix], z[:, method.prefix :]
    T = rest.shape[1]
    width = method.width or min(d for d in range(1, T + 1) if T % d == 0 and d * d >= T)
    moved = []
    for image in rest.mT.unflatten(2, (-1, width)):
        s = image + around(image, p["K1"]) + around(image, p["K3"]) + around(image, p["K5"])
        H, V = transform(s.shape[1], -1.0), transform(s.shape[2], -1.0)
        f = H @ s.to(H.dtype) @ V
        real, imag = around(torch.cat((f.real, f.imag)), p["K_f"]).chunk(2)
        back = transform(s.shape[1], 1.0) @ torch.complex(real, imag) @ transform(s.shape[2], 1.0)
        moved.append(back.real.flatten(1).mT / T)
    y = x @ W.mT + torch.cat((head, torch.stack(moved)), 1) @ p["W_d"].mT
    return y if b is None else y + b
