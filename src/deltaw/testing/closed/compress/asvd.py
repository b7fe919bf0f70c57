"""ASVD: the error in its metric, and scale 1."""

from __future__ import annotations

import torch

from ....methods.compress.asvd import ASVD
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    W, X = values(12, 9, name="W"), values(40, 9, name="X") * torch.arange(1, 10)
    scales = X.abs().mean(0)
    L, R, _ = ASVD().weight(W, {"scales": scales}, 0.6)
    d, k = scales.sqrt() + 1e-6, L.shape[1]
    S = torch.linalg.svdvals(W * d)
    close("error² in the metric", ((W - L @ R) * d).square().sum(), S[k:].square().sum(), 1e-9)
    one, _, _ = ASVD().weight(W, {"scales": torch.ones(9)}, 0.6)
    U, s, _ = torch.linalg.svd(W)
    close("scale 1 spans the plain SVD", torch.linalg.qr(one)[0] @ (torch.linalg.qr(one)[0].mT @ U[:, :k]), U[:, :k], 1e-8)
    must(ASVD(align=4).weight(W, {"scales": scales}, 0.6)[0].shape[1] % 4 == 0, "not aligned")
    return f"rank {k}"
