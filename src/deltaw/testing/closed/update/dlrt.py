"""The KLS integrator by hand: on the dense weight, with orthogonal bases from SVDs and the gradient of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.dlrt import DLRTSteps

from .... import attach
from ....plan import Plan
from ....spec import METHODS
from ...laws.base import close, must
from ...tiny import One, settle, values
from ..hand import adam

RULES = [DLRTSteps(theta=0.1), DLRTSteps(theta=0.0, weight_decay=0.1), DLRTSteps(theta=0.3, inner="adam")]
M, N, RANK, MOST, STEPS, RATE = 9, 8, 3, 4, 5, 0.2


def basis(*parts: Tensor) -> Tensor:
    """Orthonormal columns for the space of all of them."""
    joined = torch.cat(parts, 1)
    return torch.linalg.svd(joined, full_matrices=False)[0]


def check(rule: Any) -> str:
    """Weight, biases and ranks after each step. With SGD the bases do not matter; moments by column are compared for the first step."""
    model = settle(One(M, N), torch.float64)
    x, y = values(20, N, name="x"), values(20, M, name="y")
    W = model.blocks[0].weight.detach()
    b = model.blocks[0].bias.detach()
    adapted = attach(model, Plan(METHODS["dlrt"](r=RANK, r_max=MOST), targets=["blocks.0"], update=rule))  # type: ignore[call-arg]
    optimizer, entry = adapted.optimizer(RATE), adapted.entries()["blocks.0"]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    def gradient(weight: Tensor) -> Tensor:
        return 2.0 * (x @ weight.mT + b - y).mT @ x / y.numel()

    steps, ranks = 1 if rule.inner == "adam" else STEPS, []
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, V = U[:, :RANK], torch.diag(S[:RANK]), Vh[:RANK].mT
    for step in range(1, steps + 1):
        loss = optimizer.step(closure)
        want = (x @ (U @ S @ V.mT).mT + b - y).square().mean()
        close(f"loss of step {step}", loss, want, 1e-9)
        G = gradient(U @ S @ V.mT)
        way = (lambda g: adam(g, {}, RATE)) if rule.inner == "adam" else (lambda g: RATE * g)
        if (
            rule.inner == "adam"
        ):  # signs of the columns: Adam's first step is the sign of the gradient, whatever its size
            U, V, S = _as_started(model, W)
        K, L = U @ S - way(G @ V), V @ S.mT - way(G.mT @ U)
        U1, V1 = (torch.linalg.qr(torch.cat(p, 1))[0] for p in ((K, U), (L, V)))
        if rule.inner == "sgd":  # any orthonormal basis of the space gives the same step
            U1, V1 = basis(K, U), basis(L, V)
        S1 = U1.mT @ U @ S @ V.mT @ V1
        close(f"weight in the doubled basis, step {step}", U1 @ S1 @ V1.mT, U @ S @ V.mT, 1e-10)
        S1 = S1 * (1 - RATE * rule.weight_decay) - way(U1.mT @ gradient(U @ S @ V.mT) @ V1)
        P, sigma, Qh = torch.linalg.svd(S1)
        lost = [float(sigma[k:].square().sum().sqrt()) for k in range(len(sigma) + 1)]
        k = next(k for k in range(len(lost)) if lost[k] <= rule.theta * lost[0] * (1 + 1e-12) + 1e-13)
        k = min(max(k, 2), MOST)
        U, S, V = U1 @ P[:, :k], torch.diag(sigma[:k]), V1 @ Qh[:k].mT
        close(f"weight after step {step}", entry.get("U") @ entry.get("S") @ entry.get("V").mT, U @ S @ V.mT, 1e-8)
        ranks.append(int((entry.get("U") != 0).any(0).sum()))
        must(ranks[-1] == k, f"rank {ranks[-1]} after step {step}; expected {k}")
        for name in "UV":
            t = entry.get(name)[:, :k]
            close(f"{name}ᵀ{name}", t.mT @ t, torch.eye(k, dtype=t.dtype), 1e-10)
    return f"{steps} steps, ranks {ranks}"


def _as_started(model: Any, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, V, S as the structure starts: the entry of largest size in every column of U is positive."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, V = U[:, :RANK], S[:RANK], Vh[:RANK].mT
    sign = torch.stack([u[u.abs().argmax()].sign() for u in U.mT])
    return U * sign, V * sign, torch.diag(S)
