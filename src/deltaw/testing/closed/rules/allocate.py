"""SNELLA's shares by hand: importances in lists, the budget of an epoch, and its division with a cap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .... import attach
from ....methods.rules.allocate import Allocate
from ....methods.structure.snella import SNELLA
from ....plan import Plan
from ...laws.base import must
from ...tiny import settle, values

SPARSITY, EVERY, T, BETA, STEPS = 0.6, 2, 4, 0.85, 10


def division(weight: dict[str, float], budget: int, room: dict[str, int]) -> dict[str, float]:
    """In proportion; who would get more than there is room gets the room, and the others share the rest alike."""
    full: set[str] = set()
    while True:
        rest = budget - sum(room[k] for k in full)
        total = sum(v for k, v in weight.items() if k not in full)
        part = {k: float(room[k]) if k in full else rest * v / total for k, v in weight.items()}
        more = {k for k in part if k not in full and part[k] > room[k]}
        if not more:
            return part
        full |= more


def check() -> str:
    net = settle(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), torch.float64)
    adapted = attach(net, Plan(SNELLA(q=4, sparsity=SPARSITY, every=EVERY, T=T)))
    must(adapted.plan.method.rules() == (Allocate(SPARSITY, EVERY, T),), "the rule is another one")  # type: ignore[union-attr]
    optimizer, entries = adapted.optimizer(2e-2), adapted.entries()
    A: dict[Any, Tensor] = {}
    U: dict[Any, Tensor] = {}
    room, kept = {s: e.get("V").item() for s, e in entries.items()}, []
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        (net(values(8, 6, name=f"x{t}")) - values(8, 4, name=f"y{t}")).square().mean().backward()
        for s, e in entries.items():
            for w in "PQ":
                new = (e.get(w).detach() * e.get(w).grad).abs()
                A[s, w] = BETA * A.get((s, w), 0 * new) + (1 - BETA) * new
                U[s, w] = BETA * U.get((s, w), 0 * new) + (1 - BETA) * (new - A[s, w]).abs()
        optimizer.step()
        got = {s: int(e.get("V")) for s, e in entries.items()}
        if t % EVERY == 0 and t // EVERY <= T:
            rho = SPARSITY * (1 - (1 - t / EVERY / T) ** 3)
            budget = int((1 - rho) * sum(room.values()))
            weight = {s: float(sum((A[s, w] * U[s, w]).mean() for w in "PQ")) for s in entries}
            want = division(weight, budget, room)  # type: ignore[arg-type]
            must(all(abs(got[s] - want[s]) < 1 for s in got) and sum(got.values()) == budget, f"step {t}: entries {got}, by hand {want} of {budget}")
            kept.append(got)
        elif kept:
            must(got == kept[-1], f"step {t}: entries changed outside an epoch")
    # the budget falls three times; the last epoch has that of the one before, and need not divide it anew
    must(len({tuple(k.values()) for k in kept}) >= T - 1 and len(kept) == T, f"entries by epoch: {kept}")
    return f"{STEPS} steps, entries by epoch {[tuple(k.values()) for k in kept]}"
