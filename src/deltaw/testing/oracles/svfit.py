"""SVFit: the closed form, with the singular values written out (PEFT does not have it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.svfit import SVFit

METHODS = (SVFit(r=4), SVFit(r=16))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """W_res x + U_r diag(sigma) V_rᵀ x + b with sigma = sigma_W + dsigma: the paper's form, with its residual."""
    S = torch.linalg.svdvals(W)[: method.r]
    lead = p["U"] @ torch.diag(S) @ p["Vt"]
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(lead, U[:, : method.r] @ torch.diag(S) @ Vh[: method.r], rtol=1e-9, atol=1e-9)
    y = x @ (W - lead).mT + ((x @ p["Vt"].mT) * (S + p["dsigma"])) @ p["U"].mT
    return y if b is None else y + b
