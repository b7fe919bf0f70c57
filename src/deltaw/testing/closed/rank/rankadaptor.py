"""RankAdaptor on scores that are known: feasible, seeded, and better than chance."""

from __future__ import annotations

import math

from ....methods.rank.rankadaptor import RankAdaptor
from ...laws.base import must


def check() -> str:
    sites = [f"s{k}" for k in range(6)]
    costs = {s: 1.0 + k for k, s in enumerate(sites)}
    gain = {s: float((k * 5) % 7) for k, s in enumerate(sites)}
    asked: list[dict[str, int]] = []

    def measure(config: dict[str, int]) -> float:
        asked.append(config)
        must(sum(config[s] * costs[s] for s in sites) <= 100 and set(config.values()) <= {2, 4, 8}, f"not feasible: {config}")
        return sum(gain[s] * math.log1p(config[s]) for s in sites)

    policy = RankAdaptor(choices=(2, 4, 8), first=6, rounds=8, seed=3)
    best, seen = policy.search(measure, sites, costs, 100)
    scores = [v for _, v in seen]
    must(dict(best) == seen[scores.index(max(scores))][0] and len({tuple(c.values()) for c in asked}) == len(asked), "no best, or one twice")
    again, _ = policy.search(measure, sites, costs, 100)
    must(again == best, "the same seed found another")
    must(max(scores) > max(scores[:6]), f"the network found nothing better than chance: {scores}")
    return f"best of chance {max(scores[:6]):.3f}, with the network {max(scores):.3f}"
