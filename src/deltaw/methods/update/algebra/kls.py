"""The KLS integrator: an optimiser for weights in the form U S Vᵀ, whose steps need the gradient twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bases import signed
from .inners import Inner
from .optimizer import Rule, Step, SubOptimizer


@dataclass(frozen=True)
class Kls(Rule):
    """The halves of a step on one U S Vᵀ in turn: K and L, which doubles the basis; S, which cuts it again."""

    inner: Inner
    theta: float

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        U, S, V, s = p["U"], p["S"], p["V"], state["S"]
        if "half" not in s:
            s |= {"half": torch.zeros(()), "width": (U != 0).any(0).sum()}
        w = int(s["width"])

        def way(role: str) -> Tensor:  # lr times the direction, in all columns of the buffer
            D, gain = self.inner(g[role], state[role].setdefault("inner", {}))
            return now.lr[role] * gain * D

        if not s["half"]:
            u, c, v = U[:, :w].clone(), S[:w, :w].clone(), V[:, :w].clone()
            Q = torch.linalg.qr(torch.cat([u @ c - way("U")[:, :w], u], 1))[0]
            R = torch.linalg.qr(torch.cat([v @ c.mT - way("V")[:, :w], v], 1))[0]
            U[:, : 2 * w], V[:, : 2 * w], S[: 2 * w, : 2 * w] = Q, R, (Q.mT @ u) @ c @ (R.mT @ v).mT
        else:
            c = S[: 2 * w, : 2 * w] * (1 - now.lr["S"] * now.decay["S"]) - way("S")[: 2 * w, : 2 * w]
            P, sigma, Qt = torch.linalg.svd(c)
            k, sign = rank_at(sigma, self.theta, U.shape[1] // 2), (signed(P) * P).sum(0).sign()
            u, v = U[:, : 2 * w] @ (P * sign)[:, :k], V[:, : 2 * w] @ (Qt.mT * sign)[:, :k]
            for t in (U, S, V):
                t.zero_()
            U[:, :k], V[:, :k], S[:k, :k] = u, v, torch.diag(sigma[:k])
            s["width"] = torch.tensor(k)
        s["half"] = 1 - s["half"]


def rank_at(sigma: Tensor, theta: float, most: int) -> int:
    """The fewest singular values, 2 to `most`, after which the norm of the rest is at most theta times that of all."""
    tail = sigma.square().flip(0).cumsum(0).flip(0).sqrt()  # tail[k]: what is lost if k are kept
    return min(max(int((tail > theta * tail[0]).sum()), 2), most, len(sigma))


@dataclass(frozen=True)
class OnS(Rule):
    """Another rule, in every second half only."""

    rule: Rule

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        s = state[next(iter(p))]
        s["half"] = 1 - s.get("half", torch.zeros(()))
        if not s["half"]:
            self.rule.step(p, g, {role: state[role].setdefault("rule", {}) for role in p}, now)


class KlsOptimizer(SubOptimizer):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """closure (zero the gradients, forward, backward, return the loss): a whole step, two evaluations of it; the loss
        of the first. Without one: the next half, with the gradients that are there."""
        loss = self._move(closure)
        if closure is not None:
            self._move(closure)
        return loss
