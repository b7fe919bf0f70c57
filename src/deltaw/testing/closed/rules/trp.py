"""TRP's cuts: a run of 7 steps against AdamW on a dense weight that is cut by hand."""

from __future__ import annotations

from typing import Any

import torch

from .... import attach
from ....plan import Plan
from ....spec import METHODS
from ...laws.base import close, must
from ...tiny import One, settle, values
from ..hand import adam

M, N, EVERY, ENERGY, PENALTY, STEPS, RATE = 6, 5, 3, 0.9, 0.05, 7, 2e-2


def check() -> str:
    method: Any = METHODS["trp"](energy=ENERGY, penalty=PENALTY, every=EVERY)  # type: ignore[call-arg]
    model = settle(One(M, N, bias=False), torch.float64)
    x, y = values(7, N, name="x"), values(7, M, name="y")
    W = model.blocks[0].weight.detach().clone()
    adapted = attach(model, Plan(method, targets=["blocks.0"]))
    optimizer, D = adapted.optimizer(RATE), adapted.entries()["blocks.0"].get("D")
    push, state, ranks = torch.zeros(M, N, dtype=W.dtype), dict[str, Any](), []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        G = 2.0 * (x @ W.mT - y).mT @ x / y.numel()
        W = W - adam(G + PENALTY * push, state, RATE)
        push = torch.zeros_like(W)
        if step % EVERY == 0:
            U, S, V = torch.linalg.svd(W, full_matrices=False)
            k = next(k for k in range(1, N + 1) if (S[:k] ** 2).sum() >= ENERGY * (S**2).sum())
            W, push = sum(S[i] * torch.outer(U[:, i], V[i]) for i in range(k)), U[:, :k] @ V[:k]
            ranks.append(k)
        close(f"W after step {step}", D, W, 1e-9)
    must(ranks[0] < N, f"nothing was cut: ranks {ranks}")
    return f"{STEPS} steps, cuts to rank {ranks}"
