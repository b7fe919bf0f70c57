"""EVA by hand: the eigenvectors of the covariance of all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.methods.init.eva import EVA

INITS = [EVA(), EVA(whiten=True)]
PEFT = "A and ranks against PEFT's get_eva_state_dict on a tiny Llama"


def closed(init: EVA, W: Tensor, stats: dict[str, Tensor], r: int, s: float) -> tuple[Tensor, Tensor, None]:
    X = stats["rows"]
    centred = X - X.mean(0)
    square, V = torch.linalg.eigh(centred.T @ centred)
    A = V.flip(1)[:, :r].T
    if init.whiten:
        A = A / square.flip(0)[:r, None] ** 0.25
    return torch.zeros(W.shape[0], r, dtype=W.dtype), A, None
