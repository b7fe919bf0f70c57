"""BO-REP: bilevel optimisation in one loop, with a slowly moving inner variable and normalised momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError, StateMismatch
from ..fused import walking

Level = Callable[[int], Tensor]  # number of the evaluation (for batches) -> the loss as a scalar


class BoRep:
    """min over x of f(x, y*(x)), y*(x) = argmin over y of g(x, y), g strongly convex in y (add a ridge where it is not).

    f, g: closures over the tensors x and y (name -> leaf that requires a gradient); they are given the number of the evaluation,
    so that batches can be drawn by it. `refine` first: SGD on y at the first x. Then step k: every `period` steps `inner` SGD steps
    on y, each kept within `radius` of the y before them; z <- z - nu (d²g/dy² z - df/dy); h = df/dx - d²g/dxdy z;
    u <- beta u + (1 - beta) h; x <- x - lr_x u / |u| (over all of x together), or - lr_x u without `normalise`.
    The products with second derivatives are two backward passes over one graph of dg/dy, on one batch.
    State: z (like y), u (like x), counters; keyed by name. Rates may be changed between steps (theirs decay by 0.2).
    Source: Hao, Gong, Liu 2024 (arXiv:2401.09587); order as in the paper: y first. Their code takes d²g/dy² z before it moves y, leaves
    df/dx out (zero in their tasks), and never clears the inner gradient, so that its k-th inner step of a period takes the sum of k of them: with these
    three put back, this reproduces it. Trap: the norm is fixed, so x never comes to rest: let lr_x decay. What f and g
    call has to have a second derivative: fused paths are switched off here, attention has to be "eager" or "math".
    """

    def __init__(
        self, f: Level, g: Level, x: Mapping[str, Tensor], y: Mapping[str, Tensor], *, lr_x: float = 5e-2, lr_y: float = 5e-2,
        nu: float = 1e-2, beta: float = 0.9, period: int = 2, inner: int = 10, radius: float | None = None, normalise: bool = True,
    ):  # fmt: skip
        if not x or not y or not all(t.requires_grad and t.is_leaf for t in (*x.values(), *y.values())):
            raise SpecError("x and y are leaf tensors by name that require a gradient, at least one of each")
        if (
            period < 1
            or inner < 1
            or not 0 <= beta < 1
            or min(lr_x, lr_y, nu) <= 0
            or (radius is not None and radius <= 0)
        ):
            raise SpecError("period and inner are at least 1, 0 <= beta < 1, rates and the radius are positive")
        self.f, self.g, self.x, self.y = f, g, dict(x), dict(y)
        self.lr_x, self.lr_y, self.nu, self.beta = lr_x, lr_y, nu, beta
        self.period, self.inner, self.radius, self.normalise = period, inner, radius, normalise
        self.z = {k: torch.zeros_like(t) for k, t in y.items()}
        self.u = {k: torch.zeros_like(t) for k, t in x.items()}
        self.steps = self.calls = 0

    def _loss(self, level: Level) -> Tensor:
        self.calls += 1
        return level(self.calls - 1)

    def _descend(self) -> float:
        """One SGD step on y; the norm of its gradient before."""
        with walking():
            grads = torch.autograd.grad(self._loss(self.g), list(self.y.values()))
        with torch.no_grad():
            for t, d in zip(self.y.values(), grads):
                t.sub_(d, alpha=self.lr_y)
        return norm(grads)

    def refine(self, steps: int, tol: float = 0.0) -> float:
        """SGD on y at the present x until |dg/dy| <= tol or the steps are over; the last norm."""
        found = float("inf")
        for _ in range(steps):
            if (found := self._descend()) <= tol:
                break
        return found

    def _lower(self) -> None:
        centre = [t.detach().clone() for t in self.y.values()]
        for _ in range(self.inner):
            self._descend()
            if self.radius is not None:
                away = [t.detach() - c for t, c in zip(self.y.values(), centre)]
                if (far := norm(away)) > self.radius:
                    with torch.no_grad():
                        for t, c, d in zip(self.y.values(), centre, away):
                            t.copy_(c + d * (self.radius / far))

    def hypergradient(self) -> dict[str, Tensor]:
        """One step of z, then h by name."""
        xs, ys, z = list(self.x.values()), list(self.y.values()), list(self.z.values())
        with walking():
            of_f = torch.autograd.grad(self._loss(self.f), [*ys, *xs], allow_unused=True)
            of_y = torch.autograd.grad(self._loss(self.g), ys, create_graph=True)
            curved = second(of_y, z, ys, keep=True)
            for t, c, d in zip(z, curved, of_f):
                t.sub_(c if d is None else c - d, alpha=self.nu)
            mixed = second(of_y, z, xs)
        direct = of_f[len(ys) :]
        return {k: -m if d is None else d - m for k, m, d in zip(self.x, mixed, direct)}

    def step(self) -> dict[str, float]:
        """One outer step."""
        if self.steps % self.period == 0:
            self._lower()
        h = self.hypergradient()
        with torch.no_grad():
            for k, u in self.u.items():
                u.mul_(self.beta).add_(h[k], alpha=1 - self.beta)
            size = norm(self.u.values())
            rate = self.lr_x / (size + 1e-10) if self.normalise else self.lr_x
            for k, t in self.x.items():
                t.sub_(self.u[k], alpha=rate)
        self.steps += 1
        return {"hypergradient": norm(h.values()), "momentum": size}

    def state_dict(self) -> dict[str, Any]:
        """z, u and the counters; x and y belong to whoever made them."""
        return {
            "z": {k: t.clone() for k, t in self.z.items()}, "u": {k: t.clone() for k, t in self.u.items()},
            "steps": torch.tensor(self.steps), "calls": torch.tensor(self.calls),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for word, mine in (("z", self.z), ("u", self.u)):
            if {k: t.shape for k, t in mine.items()} != {k: t.shape for k, t in state[word].items()}:
                raise StateMismatch(
                    f"'{word}' of this state is of other tensors: {sorted(state[word])}; here {sorted(mine)}"
                )
            for k, t in mine.items():
                t.copy_(state[word][k])
        self.steps, self.calls = int(state["steps"]), int(state["calls"])


def norm(tensors: Any) -> float:
    """Of all of them together, in float32 at least."""
    wide = (t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)
    return float(torch.stack([torch.linalg.vector_norm(t) for t in wide]).norm())


def second(grads: tuple[Tensor, ...], z: list[Tensor], of: list[Tensor], keep: bool = False) -> list[Tensor]:
    """The derivative of sum <grads, z>; zero where nothing depends on it."""
    live = [(d, v) for d, v in zip(grads, z) if d.requires_grad]
    if not live:
        return [torch.zeros_like(t) for t in of]
    found = torch.autograd.grad([d for d, _ in live], of, [v for _, v in live], retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(t) if d is None else d for t, d in zip(of, found)]
