"""AirLLM's channel: its cost by hand, codes of ranks, and that no step spends more than gets through."""

from __future__ import annotations

import math

from .... import attach
from ....methods import channel
from ....plan import Plan
from ....spec import METHODS
from ...laws.base import must
from ...tiny import Tiny, settle, values


def check() -> str:
    sizes = {"a": (10, 6), "b": (4, 8)}
    got = channel.cost({"a": 2, "b": 3}, sizes, 16, 1e3, 20.0, 0.5)
    must(abs(got - 16 * (2 * 17 + 3 * 13) / (1e3 * math.log2(101.0) * 0.5)) < 1e-12, f"cost {got}")
    must(channel.reward(2.0, 0.5) == -2.05 and channel.reward(2.0, 2.0) == -20.2, "rewards")
    for r in range(1, 65):
        must(channel.decoded(channel.encoded(r, 1, 64), 1, 64) == r, f"rank {r} does not come back")
    import torch

    model = settle(Tiny(), torch.float64).train()
    method = METHODS["airllm"](r=6, bandwidth=400.0, bits=16.0, snr=(5.0, 40.0))  # type: ignore[call-arg]
    adapted = attach(model, Plan(method))
    optimizer, spent = adapted.optimizer(1e-2), []
    for step in range(6):
        optimizer.zero_grad()
        (model(values(8, 3, 16, name=f"x{step}")) - 1).square().mean().backward()
        optimizer.step()
        spent.append(sum(int(e.get("at").sum()) * (e.get("P").shape[0] + e.get("Q").shape[1] + 1) for e in adapted.entries().values()))
    least = sum(e.get("P").shape[0] + e.get("Q").shape[1] + 1 for e in adapted.entries().values())
    most = max(channel.affordable(16, 400.0, 40.0, 1.0), least)
    must(all(least <= s <= most for s in spent) and len(set(spent)) > 1, f"numbers sent: {spent}, at most {most:.0f}")
    return f"numbers sent by step: {spent}"
