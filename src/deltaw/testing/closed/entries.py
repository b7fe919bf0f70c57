"""Entries of two weights by hand: every entry of the changes D is a number with an Adam of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import attach
from ...plan import Plan
from ..laws.base import close
from ..tiny import values
from .hand import State, adam

SIZES = {"0": (5, 6), "2": (4, 5)}
RATE = 2e-2


class Entries:
    """The library's run of two layers, and the same by hand beside it. chosen: 1 for entries that are trained."""

    def __init__(self, method: Any):
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(values(*p.shape, name=name, std=0.5))
        self.base = {k: t.detach().clone() for k, t in self.model.named_parameters()}
        self.adapted = attach(self.model, Plan(method))
        self.optimizer = self.adapted.optimizer(RATE)
        self.D = {k: torch.zeros(mn).double() for k, mn in SIZES.items()}
        self.chosen = {k: torch.ones_like(D) for k, D in self.D.items()}
        self.state: dict[str, State] = {k: {} for k in SIZES}
        self.pace = dict.fromkeys(SIZES, 1.0)  # how far of the way a step goes

    def step(self, k: int, l1: float = 0.0, still: bool = False) -> dict[str, Tensor]:
        """Both runs, one step (still: nothing moves by hand); dL/dW' of it, without the penalty."""
        x, y = values(8, 6, name=f"x{k}"), values(8, 4, name=f"y{k}")
        self.optimizer.zero_grad()
        (self.model(x) - y).square().mean().backward()
        self.optimizer.step()
        W = {s: (self.base[f"{s}.weight"] + D).requires_grad_() for s, D in self.D.items()}
        out = torch.tanh(x @ W["0"].mT + self.base["0.bias"]) @ W["2"].mT + self.base["2.bias"]
        grads = dict(zip(W, torch.autograd.grad((out - y).square().mean(), list(W.values()))))
        for s, G in ({} if still else grads).items():
            way = adam((G + l1 * self.D[s].sign()) * self.chosen[s], self.state[s], RATE)
            self.D[s] = self.D[s] - self.pace[s] * way * self.chosen[s]
        return grads

    def agree(self, what: str) -> None:
        for s, entry in self.adapted.entries().items():
            got = torch.zeros(self.D[s].numel()).double()
            got[entry.get("I")] = entry.get("v").detach()
            close(f"{what}: D of {s}", got, self.D[s].flatten(), 1e-9)
            close(f"{what}: places of {s}", torch.zeros_like(got).index_fill(0, entry.get("I"), 1.0), self.chosen[s].flatten(), 0.0)
