"""Wanda by hand, and the choices of ranks."""

from __future__ import annotations

import torch

from ....methods.compress.shears import Shears, choose
from ...laws.base import must
from ...tiny import values


def check() -> str:
    W, X = values(7, 10, name="W"), values(40, 10, name="X") * torch.arange(1, 11)
    (P,) = Shears().weight(W, {"inputs": X.mT @ X}, 0.5)
    size = X.square().sum(0).sqrt()
    for i in range(7):
        score = [(abs(float(W[i, j])) * float(size[j]), j) for j in range(10)]
        dead = {j for _, j in sorted(score)[:5]}
        must({j for j in range(10) if P[i, j] == 0} == dead, f"row {i}")
    must(torch.equal(P[P != 0], W[P != 0]), "what stays was changed")
    groups = ["a", "b", "c"]
    must(set(choose([32, 24, 16], groups).values()) == {24} and set(choose([16, 32], groups, "least").values()) == {16}, "heuristics")
    gain = {"a": 1.0, "b": -1.0, "c": 0.5}
    found = choose([32, 24, 16], groups, "search", lambda c: sum(gain[g] * r for g, r in c.items()))
    must(found == {"a": 32, "b": 16, "c": 32}, f"search found {found}")
    return "half of each of 7 rows; the search finds a separable optimum"
