"""One unrolled step: the gradient of a validation loss with respect to outer variables, by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def hypergradient(
    outer: list[Tensor], inner: list[Tensor], train: Callable[[], Tensor], validation: Callable[[], Tensor], rate: float, eps: float = 1e-2
) -> list[Tensor]:
    """d L_v(theta - rate grad L_t(theta, x), x) / dx for the outer variables x and inner ones theta:

        grad_x L_v(theta') - rate (grad_x L_t(theta+) - grad_x L_t(theta-)) / (2 e),  theta± = theta ± e grad_theta' L_v(theta'),
        theta' = theta - rate grad_theta L_t,  e = eps / |grad_theta' L_v|.

    Tensors are as before afterwards. Source: DARTS (Liu et al. 2019), as AutoLoRA uses it. Trap: train() and validation() must give the
    same value when they are called again (no dropout), or the difference is noise.
    """

    def grads(loss: Callable[[], Tensor], wrt: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss(), wrt, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, found)]

    kept = [t.detach().clone() for t in inner]

    def put(step: list[Tensor], by: float) -> None:
        with torch.no_grad():
            for t, old, d in zip(inner, kept, step):
                t.copy_(old + by * d)

    with torch.enable_grad():
        down = grads(train, inner)
        put(down, -rate)
        both = grads(validation, [*outer, *inner])
        direct, v = both[: len(outer)], both[len(outer) :]
        size = float(torch.stack([g.double().square().sum() for g in v]).sum().sqrt())
        if size == 0:
            put(down, 0.0)
            return direct
        e = eps / size
        put(v, e)
        plus = grads(train, outer)
        put(v, -e)
        minus = grads(train, outer)
        put(v, 0.0)
    return [d - rate * (p - q) / (2 * e) for d, p, q in zip(direct, plus, minus)]
