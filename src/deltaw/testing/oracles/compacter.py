"""Compacter: the closed form with both matrices written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.stream.compacter import Compacter

METHODS = (Compacter(r=4, n=2), Compacter(r=8, n=4, act="tanh"))


def closed(method: Any, W: Any, b: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """A_i ⊗ B_i block by block: block (j, k) of it is A_i[j, k] B_i."""
    def matrix(s: Tensor, t: Tensor) -> Tensor:
        total = 0
        for i in range(method.n):
            B = torch.outer(s[i], t[i])
            total = total + torch.cat([torch.cat([a * B for a in row], 1) for row in p["A"][i]], 0)
        return total

    z = x @ matrix(p["sD"], p["tD"]).mT + p["c"]
    z = z.tanh() if method.act == "tanh" else 0.5 * z * (1 + torch.erf(z / 2**0.5))
    return x + z @ matrix(p["sU"], p["tU"]).mT + p["b"]
