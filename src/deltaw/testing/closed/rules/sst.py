"""SST's turns: a run of 14 steps against the algorithm on a dense weight, written with the gradient of that weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .... import attach
from ....plan import Plan
from ....spec import METHODS
from ...laws.base import close, must
from ...tiny import One, settle, values
from ..hand import adam

M, N, R, EVERY, WARM, STEPS, RATE = (
    6,
    5,
    2,
    4,
    2,
    14,
    3e-2,
)  # a turn at 4, 8, 12; ceil(5 / 2) = 3: the third decomposes anew


def check() -> str:
    method: Any = METHODS["sst"](r=R, every=EVERY, warmup=WARM)  # type: ignore[call-arg]
    model = settle(One(M, N, bias=False), torch.float64)
    x, y = values(7, N, name="x"), 2.0 * values(7, M, name="y")
    W = model.blocks[0].weight.detach().clone()
    adapted = attach(model, Plan(method, targets=["blocks.0"]))
    optimizer, entry = adapted.optimizer(RATE), adapted.entries()["blocks.0"]
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, V = U.clone(), S.clone(), Vh.mT.clone()
    chosen, since = entry.get("I").tolist(), WARM
    state: dict[Any, dict[str, Any]] = {"S": {}, **{(w, k): {} for w in "uv" for k in range(R)}}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        G = 2.0 * (x @ (U @ torch.diag(S) @ V.mT).mT - y).mT @ x / y.numel()
        damped = (since + 1) / (WARM + 1) if since < WARM else 1.0
        new_S = S - adam(torch.stack([U[:, i] @ G @ V[:, i] for i in range(N)]), state["S"], RATE)
        moved: list[tuple[Tensor, Tensor]] = []
        for k, i in enumerate(chosen):
            u = U[:, i] - damped * adam(G @ V[:, i], state["u", k], RATE)
            v = V[:, i] - damped * adam(G.mT @ U[:, i], state["v", k], RATE)
            moved.append((u / u.norm(), v / v.norm()))
        S, since = new_S.clamp(min=0), since + 1
        for i, (u, v) in zip(chosen, moved):
            U[:, i], V[:, i] = u, v
        if step % EVERY == 0:
            if step // EVERY % 3 == 0:
                U, S, Vh = torch.linalg.svd(U @ torch.diag(S) @ V.mT, full_matrices=False)
                V, state["S"] = Vh.mT.clone(), {}
            chosen, since = entry.get("I").tolist(), 0
            must(len(set(chosen)) == R, f"{chosen} are not {R} different vectors")
            state |= {(w, k): {} for w in "uv" for k in range(R)}
        close(f"W after step {step}", _weight(adapted), U @ torch.diag(S) @ V.mT, 1e-8)
        close(f"S after step {step}", entry.get("S"), S, 1e-8)
    return f"{STEPS} steps, {STEPS // EVERY} turns"


def _weight(adapted: Any) -> Tensor:
    site = adapted.assignments[0].site
    return adapted.entries()[site.name].layer(site.leaf(), {}).op.dense().detach()  # type: ignore[no-any-return]
