"""GoRA by hand: the gradient projected on the row space of A, and the ranks counted out."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.gora import GoRA

INITS = [GoRA(), GoRA(gamma=1.0)]
DRAWN = True


def closed(init: GoRA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    A = stats["A"]
    n = A.shape[1]
    inverse = torch.linalg.inv(A @ A.T + 1e-8 * torch.eye(r, dtype=A.dtype))
    zeta = init.gamma / (r / n) ** 0.5 / s
    B = -zeta * stats["gradient"] @ A.T @ inverse
    Q = torch.linalg.qr(A.T)[0]
    want = -init.gamma * (n / r) ** 0.5 * stats["gradient"] @ Q @ Q.T
    torch.testing.assert_close(s * B @ A, want, rtol=1e-5, atol=1e-8)
    return B, A, None
