"""PEARL's energy rule on matrices of known singular values."""

from __future__ import annotations

import torch

from ....methods.rank.pearl import PEARL
from ....ops import as_op
from ....spec import METHODS, Start
from ...laws.base import must
from ...tiny import values


def check() -> str:
    W = values(8, 6, name="W")
    U, V = (torch.linalg.qr(values(k, 6, name=f"q{k}"))[0] for k in (8, 6))
    moved = (U * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.0, 0.0], dtype=W.dtype)) @ V.mT
    start = Start("a", "linear", as_op(W), 0, METHODS["lora"]())
    still = Start("b", "linear", as_op(W), 0, METHODS["lora"]())
    squares = torch.tensor([9.0, 4.0, 1.0, 0.25])
    for tau in (0.5, 0.63, 0.64, 0.9, 0.99, 1.0):
        want = next(k for k in range(1, 5) if squares[:k].sum() >= tau * squares.sum() - 1e-9)
        got = PEARL(tau).ranks([start, still], {"a": {"original": W + moved}, "b": {"original": W}})
        must(got == {"a": want, "b": 0}, f"tau {tau}: {got}, expected {want} and 0 for what did not move")
    return "six shares; 0 where nothing moved"
