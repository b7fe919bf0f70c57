"""SALT: the paper's form, the whole core between the whole frames, without W (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.salt import SALT

METHODS = (SALT(r=2), SALT(r=3, ratio=0.25))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    sigma = torch.linalg.svdvals(W)
    k = p["a"].shape[0]
    top = (p["a"] * sigma[:k] + p["b"]).clamp_min(0)
    core = torch.block_diag(torch.diag(top), torch.diag(sigma[k:]) + p["X"] @ p["Y"])
    U, V = torch.cat([p["U"], p["U_rest"]], 1), torch.cat([p["Vt"], p["Vt_rest"]], 0)
    torch.testing.assert_close(U @ torch.diag(sigma) @ V, W, rtol=1e-9, atol=1e-9)
    y = x @ (U @ core @ V).mT
    return y if b is None else y + b
