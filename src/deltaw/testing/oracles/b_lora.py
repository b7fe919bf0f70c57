"""Bayesian-LoRA in evaluation: gates of 0 or 1, and the residual quantiser number by number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.b_lora import BLoRA

METHOD = BLoRA(r=3, alpha=6.0)


def gate(phi: Tensor) -> Tensor:
    """1 where the chance of a zero, sigmoid(2/3 log(0.1 / 1.1) - phi), is below 0.34; its gradient is that chance's, with the other sign."""
    shut = 1 / (1 + torch.exp(phi - 2 / 3 * math.log(0.1 / 1.1)))
    return (shut < 0.34).to(phi) - shut + shut.detach()


def parts(x: float, top: float) -> list[float]:
    """x on the grid of 2 bits, then what is left on ever finer ones."""
    step = 2 * top / 3
    found = [step * round(x / step)]
    for finer in (5, 17, 257, 65537):
        step /= finer
        found.append(step * round((x - sum(found)) / step))
    return found


def coded(t: Tensor, phi: Tensor) -> Tensor:
    """The parts while their gates are open; rounding passes gradients straight on."""
    fixed = t.detach()
    E = torch.tensor([[parts(v, float(fixed.abs().max())) for v in row] for row in fixed.tolist()], dtype=t.dtype).to(fixed)
    out, open_ = E[..., 0] + t - fixed, torch.ones(()).to(fixed)
    for k in range(4):
        open_ = open_ * gate(phi[k])
        out = out + open_ * E[..., k + 1]
    return out


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    B, A = coded(p["B"], p["phi_B"]), coded(p["A"], p["phi_A"])
    y = x @ W.mT if b is None else x @ W.mT + b
    for k in range(len(A)):
        y = y + gate(p["phi"][k]) * method.alpha / method.r * (x @ A[k])[..., None] * B[:, k]
    return y
