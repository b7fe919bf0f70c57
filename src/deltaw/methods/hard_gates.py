"""Gates that are exactly 0 or 1 now and then (hard concrete), and a quantiser whose bits have such gates (Bayesian Bits)."""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH, TAU = -0.1, 1.1, 2 / 3


def hard_concrete(phi: Tensor, u: Tensor) -> Tensor:
    """clip(sigmoid((log u - log(1 - u) + phi) / tau) (zeta1 - zeta0) + zeta0, 0, 1), zeta = (-0.1, 1.1), tau = 2/3."""
    return (torch.sigmoid((u.log() - (1 - u).log() + phi) / TAU) * (HIGH - LOW) + LOW).clamp(0, 1)


def opened(phi: Tensor) -> Tensor:
    """P(z > 0) = sigmoid(phi - tau log(-zeta0 / zeta1))."""
    return torch.sigmoid(phi - TAU * torch.log(torch.tensor(-LOW / HIGH, dtype=phi.dtype, device=phi.device)))


def decided(phi: Tensor) -> Tensor:
    """The gate after training: 1 where sigmoid(tau log(-zeta0 / zeta1) - phi), the chance of a zero, is below 0.34."""
    return (1 - opened(phi) < 0.34).to(phi.dtype)


def residual(x: Tensor, z: Tensor) -> Tensor:
    """x_2 + z_4 (e_4 + z_8 (e_8 + z_16 (e_16 + z_32 e_32))): x in 2, 4, .. bits, z (4,) the gates of the finer ones; rounding is straight-through."""
    top = x.detach().abs().max().clamp(min=1e-12)
    step = 2 * top / 3
    whole = step * (x / step).round()
    parts, b = [], 2
    for _ in range(len(z)):
        b *= 2
        step = step / (2 ** (b // 2) + 1)
        parts.append(step * ((x.detach() - whole.detach() - sum(t.detach() for t in parts)) / step).round())
    out = torch.zeros_like(x)
    for gate, part in zip(z.flip(0), reversed(parts)):
        out = gate * (part.detach() + out)
    return x + (whole - x).detach() + out
