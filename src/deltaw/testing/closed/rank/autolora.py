"""AutoLoRA's rule, and the hypergradient against a finite difference of the unrolled loss."""

from __future__ import annotations

import torch

from ....bilevel import hypergradient
from ....methods.rank.autolora import AutoLoRA
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    got = AutoLoRA(r=4).of({"a": torch.tensor([1.0, 1.0, 1.0, 1.0]), "b": torch.tensor([2.0, 1.0, 0.5, 0.1]), "c": torch.tensor([-1.0, -1.0, 0.0, 0.0])})
    must(got == {"a": 4, "b": 2, "c": 4}, f"found {got}: terms with at least the mean; all where the sum is no share")
    theta, x = values(3, name="theta").requires_grad_(), values(2, name="x").requires_grad_()
    C = values(3, 2, name="C")

    def train() -> torch.Tensor:
        return ((theta - C @ x) ** 2 * torch.tensor([1.0, 2.0, 0.5])).sum() + (theta**4).sum() * x[0] ** 2

    def validation() -> torch.Tensor:
        return ((theta - 1.0) ** 2).sum() + (theta[0] * x[1]) ** 2

    kept, rate = theta.detach().clone(), 0.05
    found = hypergradient([x], [theta], train, validation, rate, eps=1e-4)[0]
    must(torch.equal(theta.detach(), kept), "the inner variables were not put back")

    def unrolled(at: torch.Tensor) -> float:
        old = x.detach().clone()
        with torch.no_grad():
            x.copy_(at)
        g = torch.autograd.grad(train(), theta)[0]
        with torch.no_grad():
            theta.copy_(kept - rate * g)
            value = float(validation())
            theta.copy_(kept)
            x.copy_(old)
        return value

    d = 1e-5
    want = torch.tensor([(unrolled(x.detach() + d * e) - unrolled(x.detach() - d * e)) / (2 * d) for e in torch.eye(2, dtype=x.dtype)])
    close("hypergradient", found, want.to(found), 1e-5)
    return "the rule on three vectors; the hypergradient of a quartic"
