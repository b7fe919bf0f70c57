"""Configurations within a budget, and a small network that guesses which is good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import random as rng

Config = tuple[int, ...]


def candidates(choices: Sequence[int], costs: Sequence[float], budget: float, count: int, seed: int, number: int) -> list[Config]:
    """`count` random configurations within the budget: drawn freely, then random sites go down until it is met."""
    low, out = sorted(choices), []
    for i in range(count):
        u = rng.uniform((2, len(costs)), rng.key(seed, "candidates", number, i), 0.0, 1.0)
        at = [min(int(v * len(low)), len(low) - 1) for v in u[0].tolist()]
        order, k = u[1].argsort().tolist(), 0
        while sum(low[a] * c for a, c in zip(at, costs)) > budget:
            at[order[k % len(order)]] = max(at[order[k % len(order)]] - 1, 0)
            k += 1
        out.append(tuple(low[a] for a in at))
    return out


def predict(seen: dict[Config, float], pool: list[Config], seed: int) -> Tensor:
    """Scores of the pool by an MLP (sites -> 32 -> 32 -> 32 -> 1, ReLU; 200 steps of Adam at 1e-2) that is fitted to all seen ones."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        sizes = [len(pool[0]), 32, 32, 32, 1]
        layers = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers[:-1])
        x, y = (torch.tensor(v, dtype=torch.float32) for v in (list(seen), list(seen.values())))
        top, mean, std = x.max(), y.mean(), y.std(unbiased=False).clamp(min=1e-9)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            (net(x / top)[:, 0] - (y - mean) / std).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            found: Tensor = net(torch.tensor(pool, dtype=torch.float32) / top)[:, 0]
            return found
