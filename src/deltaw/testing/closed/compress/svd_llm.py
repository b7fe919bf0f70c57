"""SVD-LLM: its error identity; C = I; a Gram matrix that is not positive definite."""

from __future__ import annotations

import torch

from ....methods.compress.svd_llm import SVDLLM
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    W, X = values(12, 9, name="W"), values(40, 9, name="X") * torch.arange(1, 10)
    L, R, _ = SVDLLM().weight(W, {"inputs": X.mT @ X}, 0.6)
    k = L.shape[1]
    S = torch.linalg.svdvals(W @ torch.linalg.cholesky(X.mT @ X))
    close("|(W - W') X|²", ((W - L @ R) @ X.mT).square().sum(), S[k:].square().sum(), 1e-9)
    plain = torch.linalg.svdvals(W)
    L, R, _ = SVDLLM().weight(W, {"inputs": torch.eye(9)}, 0.6)
    close("C = I is the SVD", (W - L @ R).square().sum(), plain[k:].square().sum(), 1e-10)
    L, R, _ = SVDLLM().weight(W, {"inputs": X[:4].mT @ X[:4]}, 0.9)
    must(bool(torch.isfinite(L @ R).all()), "four tokens for nine inputs gave what is not finite")
    close("on those tokens", (L @ R) @ X[:4].mT, W @ X[:4].mT, 1e-2)
    return f"rank {k}: the identity; fewer tokens than inputs"
