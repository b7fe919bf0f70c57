"""What a setting is worth: the reward after one step under it, which is then taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def lookahead_reward(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    reward: Callable[[], float],
    settings: dict[str, Any] | None = None,
) -> float:
    """reward() after one step of the optimiser on loss(), with `settings` ({"lr": 1e-3}) in all its groups; afterwards parameters,
    gradients, optimiser state and settings are as before, bit for bit, also after an error.

    The signal by which AutoHAS compares hyper-parameters during one run; its controller and search spaces are left out: any
    sampler (Optuna's, a bandit) may ask. Source: Dong et al. 2021 (AutoHAS), from its description. Trap: hooks on the optimiser run as
    in any step; what they change outside its parameters stays.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    values, grads = [p.detach().clone() for p in params], [p.grad for p in params]
    state = {p: copy.deepcopy(s) for p, s in optimizer.state.items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group.update(settings or {})
        for p in params:
            p.grad = None
        with torch.enable_grad():
            loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(reward())
    finally:
        with torch.no_grad():
            for p, value, g in zip(params, values, grads):
                p.copy_(value)
                p.grad = g
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, old in zip(optimizer.param_groups, groups):
            for k in [k for k in group if k != "params" and k not in old]:
                del group[k]
            group.update(old)
