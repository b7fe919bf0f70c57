"""AFM: the error identity, the bias, and that it is the whitened SVD of centred inputs; tables."""

from __future__ import annotations

import torch

from ....methods.compress.afm_ctr import AFM, table
from ....methods.compress.factorise import factorise
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    W, X = values(12, 9, name="W"), values(60, 9, name="X") * torch.arange(1, 10) + 2.0
    stats = {"inputs": X.mT @ X / 60, "mean": X.mean(0)}
    L, R, bias = AFM().weight(W, stats, 0.6)
    k, Y = L.shape[1], X @ W.mT
    new = X @ (L @ R).mT + bias
    eigen = torch.linalg.eigvalsh(torch.cov(Y.mT, correction=0)).flip(0)
    close("E|y - y'|²", (Y - new).square().sum(1).mean(), eigen[k:].sum(), 1e-8)
    shifted = AFM().weight(W, {"inputs": (X + 3).mT @ (X + 3) / 60, "mean": X.mean(0) + 3}, 0.6)
    close("a shift of the inputs moves only the mean", shifted[0] @ shifted[1], L @ R, 1e-7)
    centred = X - X.mean(0)
    A, B, _ = factorise(W, k, C=torch.linalg.cholesky(centred.mT @ centred))
    close("the whitened SVD of centred inputs", A @ B, L @ R, 1e-8)
    L, R, bias = AFM().weight(W, stats, 9.0)
    must(float((X @ (L @ R).mT + bias - Y).abs().max()) < 1e-9, "k = n is not exact")
    E, counts = values(30, 6, name="E"), torch.arange(1, 31)
    codes, U, mu = table(E, counts, 3)
    p = counts.double() / counts.sum()
    close("mean", mu, (p[:, None] * E).sum(0), 1e-12)
    error = (p * (E - codes @ U.mT - mu).square().sum(1)).sum()
    C = (p[:, None] * (E - mu)).mT @ (E - mu)
    close("a table's error", error, torch.linalg.eigvalsh(C)[:3].sum(), 1e-9)
    return f"rank {k}; a table of 30 rows at 3 of 6"
