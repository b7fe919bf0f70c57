"""One weight under a rule that restarts its factors: what the closed forms of such rules follow step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import attach
from ..attach import Adapted
from ..plan import Plan
from ..spec import METHODS
from .tiny import values


@dataclass
class Run:
    """The problem, and its numbers: a layer m x n, LoRA of rank r on it, a loss that is a function of the weight alone."""

    rule: Any
    m: int = 10
    n: int = 8
    r: int = 2
    alpha: float = 4.0
    lr: float = 1e-2
    dtype: torch.dtype = torch.float64
    update: Any = "adamw"
    init: Any = None

    def __post_init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(self.n, self.m, bias=False)).to(self.dtype)
        self.W0 = values(self.m, self.n, name="restarts W", std=0.3, dtype=self.dtype)
        with torch.no_grad():
            next(self.model.parameters()).copy_(self.W0)
        self.adapted = self.put()
        self.opt = self.adapted.optimizer(self.lr, steps=1000)

    def put(self) -> Adapted:
        method = METHODS["lora"](r=self.r, alpha=self.alpha)  # type: ignore[call-arg]
        return attach(self.model, Plan(method, targets=["0"], rules=self.rule, update=self.update, init=self.init))

    @property
    def s(self) -> float:
        return self.alpha / self.r

    @property
    def entry(self) -> Any:
        return self.adapted.entries()["0"]

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.entry.get("B").detach().clone(), self.entry.get("A").detach().clone()

    def weight(self) -> Tensor:
        """W' as the layer's forward has it."""
        with torch.no_grad():
            out: Tensor = self.model(torch.eye(self.n, dtype=self.dtype)).mT.clone()
        return out

    def loss(self, W: Tensor) -> Tensor:
        aim = values(self.m, self.n, name="restarts aim", dtype=W.dtype)
        return torch.log(torch.cosh(W - aim) + 0.01 * (W @ aim.mT).square().sum()).sum()

    def gradient(self, W: Tensor) -> Tensor:
        """Of the loss, at a weight."""
        W = W.detach().clone().requires_grad_()
        return torch.autograd.grad(self.loss(W), W)[0]

    def step(self) -> None:
        self.opt.zero_grad()
        self.loss(self.model(torch.eye(self.n, dtype=self.dtype)).mT).backward()  # type: ignore[no-untyped-call]
        self.opt.step()

    def steps(self, count: int) -> Iterator[int]:
        for k in range(count):
            self.step()
            yield k

    def memory(self) -> dict[str, Tensor]:
        """What the rule remembers."""
        found = self.opt.state_dict()["rules"]
        return next(v["0"] for k, v in found.items() if k != "step")
