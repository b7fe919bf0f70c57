"""Refactorisation and momentum reset: a run of 8 steps against AdamW on factors that are taken from the SVD of the product."""

from __future__ import annotations

from typing import Any

import torch

from .... import attach
from ....plan import Plan
from ....spec import METHODS, RULES
from ...laws.base import close
from ...tiny import One, settle, values
from ..hand import adam

M, N, R, EVERY, BACK, STEPS, RATE = 6, 5, 2, 3, 2, 8, 2e-2


def check() -> str:
    method: Any = METHODS["low_rank"](r=R, alpha=3.0)  # type: ignore[call-arg]
    model = settle(One(M, N, bias=False), torch.float64)
    x, y = values(7, N, name="x"), values(7, M, name="y")
    adapted = attach(
        model, Plan(method, targets=["blocks.0"], rules=RULES["lowrank_refactor"](every=EVERY, recovery=BACK))
    )
    optimizer, entry = adapted.optimizer(RATE), adapted.entries()["blocks.0"]
    A, B = (entry.get(k).detach().clone() for k in "AB")
    s, since = 1.5, BACK
    state: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        G = 2.0 * (x @ (s * B @ A).mT - y).mT @ x / y.numel()
        slow = 0.001 + 0.999 * since / (BACK - 1) if since < BACK else 1.0
        A, B = A - slow * adam(s * B.mT @ G, state[0], RATE), B - slow * adam(s * G @ A.mT, state[1], RATE)
        since += 1
        if step % EVERY == 0:
            U, S, V = torch.linalg.svd(B @ A, full_matrices=False)
            B, A = U[:, :R] @ torch.diag(S[:R].sqrt()), torch.diag(S[:R].sqrt()) @ V[:R]
            state, since = ({}, {}), 0
            close(
                f"BᵀB after step {step}", entry.get("B").mT @ entry.get("B"), entry.get("A") @ entry.get("A").mT, 1e-9
            )
        close(f"B A after step {step}", entry.get("B") @ entry.get("A"), B @ A, 1e-8)
    return f"{STEPS} steps, {STEPS // EVERY} times refactored"
