"""A map with a bend: down, an activation, up (no method imports another)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..ops import Affine, Map

Activation = Literal["gelu", "relu", "silu", "tanh"]


def activation(name: str, z: Tensor) -> Tensor:
    """A function by its name, on every entry."""
    if name == "tanh":
        return z.tanh()
    if name == "relu":
        return F.relu(z)
    return F.silu(z) if name == "silu" else F.gelu(z)


class Bent(Map):
    """y = L(x) + up(act(down(x))): a bottleneck in series where L is the identity, beside it where L is zero."""

    def __init__(self, L: Affine, down: Affine, up: Affine, act: str):
        self.L, self.down, self.up, self.act = L, down, up, act

    def __call__(self, x: Tensor) -> Tensor:
        return self.L(x) + self.up(activation(self.act, self.down(x)))
