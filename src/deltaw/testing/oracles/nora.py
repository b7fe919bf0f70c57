"""NoRA: the closed form, with the frame checked against W (PEFT 0.21 does not have it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.structure.nora import NoRA

METHOD = NoRA(r=5, q=2, alpha=3.0)


def closed(method: NoRA, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    r = method.r
    near = {"rtol": 1e-9, "atol": 1e-9}  # signs of singular vectors are free: compare products
    torch.testing.assert_close(p["B_o"] @ p["A_o"], (U[:, :r] * S[:r]) @ Vh[:r], **near)
    torch.testing.assert_close(p["B_o"].T @ p["B_o"], torch.diag(S[:r]), **near)
    torch.testing.assert_close(p["A_o"] @ p["A_o"].T, torch.diag(S[:r]), **near)
    core = p["B_i"] @ p["A_i"]
    return F.linear(x, W + method.alpha / method.q * (p["B_o"] @ core @ p["A_o"]), b)
