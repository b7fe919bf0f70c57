"""The nearest matrix of a rank."""

from __future__ import annotations

import torch

from ....methods.compress.svd import SVD
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    W = values(12, 9, name="W")
    L, R, _ = SVD().weight(W, {}, 0.5)
    k, S = int(0.5 * 108 / 21), torch.linalg.svdvals(W)
    must(L.shape == (12, k) and R.shape == (k, 9), f"rank {L.shape[1]}, expected {k}")
    close("error²", (W - L @ R).square().sum(), S[k:].square().sum(), 1e-10)
    L, R, _ = SVD().weight(W, {}, 10.0)
    close("all of it", L @ R, W, 1e-12)
    return f"rank {k}: the tail; full rank: exact"
