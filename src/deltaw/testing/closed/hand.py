"""What several closed forms have in common, by hand: none of it calls what it judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def adam(
    g: Tensor, s: State, lr: float, eps: float = 1e-8, before: bool = False, betas: tuple[float, float] = (0.9, 0.999)
) -> Tensor:
    """The step of Adam as the papers write it; `before`: epsilon before the bias correction. s["t"] may count for each entry."""
    (b1, b2), t = betas, s.get("t", 0) + 1
    s["t"], s["m"], s["v"] = t, b1 * s.get("m", 0 * g) + (1 - b1) * g, b2 * s.get("v", 0 * g) + (1 - b2) * g * g
    c1, c2 = 1 - b1**t, 1 - b2**t
    if before:
        return lr * c2**0.5 / c1 * s["m"] / (s["v"].sqrt() + eps)
    return lr * (s["m"] / c1) / ((s["v"] / c2).sqrt() + eps)


def adamw(p: dict[str, Tensor], grad: Any, rate: Any, kept: Any, steps: int) -> dict[str, Tensor]:
    """Adam on each tensor at rate(name); decay leaves kept(name) of it in a step."""
    state: dict[str, State] = {k: {} for k in p}
    for _ in range(steps):
        for k, g in grad(p).items():
            p[k] = kept(k) * p[k] - adam(g, state[k], rate(k))
    return p


def lion(g: Tensor, s: State, lr: float) -> Tensor:
    m = s.get("m", 0 * g)
    s["m"] = 0.99 * m + 0.01 * g
    return lr * torch.sign(0.9 * m + 0.1 * g)


def second(g: Tensor, s: State) -> Tensor:
    """g over the root of Adafactor's second moment."""
    s["t"] = t = s.get("t", 0) + 1
    w, q = t**-0.8, g**2 + 1e-30
    if g.dim() != 2:
        s["v"] = (1 - w) * s.get("v", 0 * q) + w * q
        return g / s["v"].sqrt()
    s["r"] = (1 - w) * s.get("r", 0) + w * q.sum(1, keepdim=True) / q.shape[1]
    s["c"] = (1 - w) * s.get("c", 0) + w * q.sum(0, keepdim=True) / q.shape[0]
    return g / torch.sqrt(s["r"] @ s["c"] / s["r"].mean())


def rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def leading(M: Tensor, k: int) -> Tensor:
    """The first k left singular vectors, each with its entry of largest size positive."""
    U = torch.linalg.svd(M)[0][:, :k]
    return torch.stack([u if u[u.abs().argmax()] > 0 else -u for u in U.T], 1)


def triplets(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma, Vᵀ by eigenvalues, with the signs of `leading`."""
    square, V = torch.linalg.eigh(G.T @ G)
    order = square.argsort(descending=True)[: min(G.shape)]
    V, sigma = V[:, order], square[order].sqrt()
    U = G @ V / sigma
    top = U.abs().argmax(0)
    flip = torch.sign(U[top, torch.arange(len(top))])
    return U * flip, sigma, (V * flip).T


def on_the_left(
    p: dict[str, Tensor],
    grad: Any,
    lr: float,
    steps: int,
    way: Callable[[str, int, Tensor, State], Tensor],
    larger: bool = False,
) -> dict[str, Tensor]:
    """Steps of a rule that is written for frames on the left: way(name, step, gradient, state) is what a matrix moves by, seen with
    its smaller side (or its `larger` one) first; what is no matrix moves by Adam. state: a dict for each tensor."""
    state: defaultdict[str, State] = defaultdict(dict)
    for step in range(steps):
        for k, G in grad(p).items():
            if not k.endswith("weight"):
                p[k] = p[k] - adam(G, state[k], lr)
            elif (G.shape[0] >= G.shape[1]) != larger:
                p[k] = p[k] - way(k, step, G.T, state[k]).T
            else:
                p[k] = p[k] - way(k, step, G, state[k])
    return p
