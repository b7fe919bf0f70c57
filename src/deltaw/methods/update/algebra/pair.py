"""The two factors of W + s B A as frames for each other, and the rules that move both.

A moves in the frame that B spans and B in the one of A: the other, live, factor is the frame, so it is new in every step. All is
written for a factor F (r, d) with the other one as Y (e, r): F = A, Y = B; for B everything is transposed (F = Bᵀ, Y = Aᵀ).

    Pair(Factor(kappa, delta, s), inner, carry, order)     a step, for A and then for B:
        C = s^-2kappa (YᵀY + delta I)^-kappa dL/dF;   carry(inner state, C -> R C), R = (YᵀY + delta I)⁻¹ Yᵀ Y_old;   U = inner(C);
        F <- F - lr U
    order: joint        both directions are computed with the factors before the step
           sequential   A, then B with the new A (and the gradient of the old one)
           alternate    one of them a step, B first; the moments of both see every gradient, in the frames before the step
           turns        one of them a step, B first; the other's gradient is not looked at

kappa = 0 is plain LoRA. kappa = 1 makes s Y C the projection of G = dL/dW' on what Y spans, whatever basis Y is in and whatever s is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ....errors import SpecError
from .. import NOTHING, About
from .carries import Carry, Keep, Movement
from .draw import Draw
from .frames import Frame, Numbers
from .inners import Inner
from .optimizer import Rule, Step, SubOptimizer, Unit
from .split import ADAMW

Order = Literal["joint", "sequential", "alternate", "turns"]
OTHER = {"A": "B", "B": "A"}


def spectrum(G: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of G + delta I, for a G without negative ones, and eigenvectors in columns."""
    values, V = torch.linalg.eigh(G)
    return values.clamp_min(0.0) + delta, V


def inverse(values: Tensor, V: Tensor, kappa: float = 1.0) -> Tensor:
    """The pseudo-inverse to the power kappa: directions of rounding errors only count as zero, as in torch.linalg.pinv."""
    cut = values.max() * torch.finfo(values.dtype).eps * len(values)
    return (V * torch.where(values > cut, values, torch.inf).pow(-kappa)) @ V.mT


@dataclass(frozen=True)
class Factor(Frame):
    """See the module. G: dL/dF (r, d); W: the other factor Y (e, r); `up` lifts coordinates to W's space, `pull` is the
    gradient of F that a gradient of W' makes, so that down(pull(up(C))) = C for kappa = 1 and delta -> 0."""

    kappa: float = 1.0
    delta: float = 1e-6
    s: float = 1.0

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw | None = None) -> Numbers:
        Y = W.to(G.dtype).clone(memory_format=torch.contiguous_format)
        if not self.kappa:
            return {"Y": Y}
        return {"Y": Y, "H": inverse(*spectrum(Y.mT @ Y, self.delta), self.kappa) / self.s ** (2 * self.kappa)}

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return f["H"] @ G if "H" in f else G

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return self.s * (f["Y"] @ C)

    def pull(self, f: Numbers, D: Tensor) -> Tensor:
        return self.s * (f["Y"].mT @ D)

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        return self.down(new, self.s**2 * (new["Y"].mT @ old["Y"])) @ C

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        """F <- F + alpha C: the step is one of the factor, not of W'."""
        W.add_(C.to(W), alpha=alpha)


@dataclass(frozen=True)
class Lend(Carry):
    """The next direction is made with a moved first moment, "lent" in the state; the one that is kept has not moved."""

    def __call__(self, inner: Inner, s: Numbers, move: Movement, spread: Movement, draw: Draw) -> None:
        s["lent"] = move(s["m"])


class Lifted(Inner):
    """An inner optimiser whose direction is made in W's space: a call takes the gradient in, `lifted` gives the direction in
    the coordinates of the frame as it is now."""

    def lifted(self, frame: Factor, f: Numbers, s: Numbers) -> tuple[Tensor, float]:
        raise NotImplementedError


@dataclass(frozen=True)
class Pair(Rule):
    """See the module. State of a factor: that of its inner optimiser, and Y_old where the carry wants to know it."""

    frame: Factor
    inner: Inner
    carry: Carry = Keep()
    order: Order = "sequential"
    decay: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if self.frame.kappa != 1 and not isinstance(self.carry, Keep):
            raise SpecError(f"moments are carried between frames of kappa = 1 only; found kappa = {self.frame.kappa}")

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        moved: tuple[str, ...] = ("A", "B")
        if self.order in ("alternate", "turns"):
            t = state["B"].setdefault("turn", torch.zeros(()))
            moved = ("B",) if int(t) % 2 == 0 else ("A",)
            state["B"]["turn"] = t + 1
        writes: list[tuple[str, Numbers, Tensor, float]] = []
        for role in moved if self.order == "turns" else ("A", "B"):
            F, Y, G = (t.detach() if role == "A" else t.detach().mT for t in (p[role], p[OTHER[role]], g[role]))
            G, s = G.to(torch.promote_types(F.dtype, torch.float32)), state[role]
            f = self.frame.refresh(G, Y, None)
            inner = s.setdefault("inner", {})
            if not isinstance(self.carry, Keep):
                if "old" in s:
                    move = partial(self.frame.move, {"Y": s["old"]}, f)
                    R = move(torch.eye(Y.shape[1], dtype=G.dtype, device=G.device))
                    draw = now.draw(role, int(inner.get("step", 0)))
                    self.carry(self.inner, inner, move, partial(torch.matmul, R.square()), draw)
                s["old"] = f["Y"]
            U, gain = self.inner(self.frame.down(f, G), inner)
            if role not in moved:
                continue
            if isinstance(self.inner, Lifted):
                U, gain = self.inner.lifted(self.frame, f, inner)
            writes.append((role, f, U, -now.lr[role] * gain))
            if self.order == "sequential":
                self._write(p, now, *writes.pop())
        for write in writes:
            self._write(p, now, *write)

    def _write(self, p: dict[str, Tensor], now: Step, role: str, f: Numbers, U: Tensor, alpha: float) -> None:
        with decayed(p[role], now, role, self.decay):
            self.frame.add(f, p[role] if role == "A" else p[role].mT, U, alpha)


@contextmanager
def decayed(W: Tensor, now: Step, role: str, when: str) -> Iterator[None]:
    """Around the step of W: decoupled weight decay lr·wd, before or after it."""
    wd = now.lr[role] * now.decay[role]
    if wd and when == "before":
        W.mul_(1 - wd)
    yield
    if wd and when == "after":
        W.mul_(1 - wd)


def factors(
    rule: Callable[[float], Rule],
    named: Mapping[str, nn.Parameter],
    lr: float,
    about: About,
    plain: Rule = ADAMW,
    **kw: Any,
) -> SubOptimizer:
    """An optimiser in which "SITE.A" (r, n) and "SITE.B" (m, r) of W + s B A move together by rule(s), and the rest (factors at
    embeddings, biases, magnitudes) by `plain`. SpecError where a factor has no partner that is trained, or there is no pair."""
    sites: dict[str, dict[str, nn.Parameter]] = {}
    for name, p in named.items():
        site, _, word = name.rpartition(".")
        if word in OTHER and p.dim() == 2 and name not in about.lookups:
            sites.setdefault(site, {})[word] = p
    missing = [f"{site}.{w}" for site, pair in sites.items() for w in OTHER if w not in pair]
    if missing or not sites:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        found = f"not trained here: {some}" if missing else f"found only {', '.join(list(named)[:5]) or 'nothing'}"
        raise SpecError(
            f"this update moves A (r, n) and B (m, r) of W + s B A together; {found}. Use it with LoRA, or another update"
        )
    units = [Unit(site, rule(about.scale(site)), dict(pair)) for site, pair in sites.items()]
    taken = {id(p) for pair in sites.values() for p in pair.values()}
    units += [Unit(name, plain, {"W": p}) for name, p in named.items() if id(p) not in taken]
    return SubOptimizer(named, units, lr, **kw)


class PairUpdate:
    """What update rules over pairs share: they say `rule(s)`, the rule of one site, and have a `weight_decay`."""

    pairs: ClassVar[bool] = True
    weight_decay: float

    def rule(self, s: float) -> Rule:
        raise NotImplementedError

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        return factors(self.rule, named, lr, about, **{"weight_decay": self.weight_decay, **kw})
