"""QWHA's start by hand: places by sorting, values by least squares on the root of the Gram matrix, row by row."""

from __future__ import annotations

import math

import torch

from deltaw.methods.init.qwha_quant import QWHAQuant
from deltaw.methods.structure.qwha import QWHA

from .... import attach
from ....plan import Plan
from ....probe import Stats
from ...laws.base import close, must
from ...tiny import One, settle, values

INITS = [QWHAQuant(), QWHAQuant(a=0.5, damp=1e-2)]
M, N, R = 6, 8, 1


def hadamard(n: int) -> torch.Tensor:
    """Sylvester's: the sign at i, j is the parity of the bits that i and j have in common."""
    return torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)], dtype=torch.float64)


def check(init: QWHAQuant) -> str:
    model = settle(One(M, N), torch.float64)
    Q, W0, X = model.blocks[0].weight.detach(), values(M, N, name="W0"), values(40, N, name="X") * torch.logspace(0, -1, N).double()
    gram = X.mT @ X / len(X)
    s = 0.25
    plan = Plan(QWHA(r=R, s=s), init=init)
    entry = attach(model, plan, stats=Stats({"blocks.0": {"original": W0, "inputs": gram}})).entries()["blocks.0"]
    H, E, K = hadamard(N), W0 - Q, R * (M + N)
    gram = gram + init.damp * gram.diagonal().mean() * torch.eye(N).double()
    vectors = torch.linalg.eigh(gram)
    root = (vectors[1] * vectors[0].sqrt()) @ vectors[1].mT
    Z, basis = H.mT @ E.mT, root @ H / N  # (n, m), (n, n)
    share = [float(Z[:, j].norm() ** init.a) for j in range(M)]
    count = [min(int(v / sum(share) * K), N) for v in share]
    while sum(count) < K:
        count[min((j for j in range(M) if count[j] < N), key=lambda j: count[j])] += 1
    places, numbers = [], []
    for j in range(M):
        gain = [float(basis[:, k].norm() ** 2 * Z[k, j] ** 2) for k in range(N)]
        S = sorted(sorted(range(N), key=lambda k: -gain[k])[: count[j]])
        c = torch.linalg.lstsq(basis[:, S], (root @ E[j])[:, None]).solution.flatten()
        places += [j * N + k for k in S]
        numbers += [float(v) * math.sqrt(M) / s for v in c]
    must(entry.get("I").tolist() == places, f"places {entry.get('I').tolist()}, by hand {places}")
    close("c", entry.get("c"), torch.tensor(numbers, dtype=torch.float64), 1e-6)
    return f"{K} places, rows of {min(count)} to {max(count)}"
