"""The sentence: one matrix, its frame, its inner optimiser and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .carries import Carry, Keep
from .draw import Draw
from .frames import Frame
from .inners import Inner, Numbers
from .optimizer import Rule, Step
from .residuals import Drop, Residual, Seen


class Finish(Protocol):
    def __call__(self, D: Tensor, W: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Relative:
    """Adafactor's end of a step: D over max(1, RMS(D) / clip), times max(floor, RMS(W))."""

    clip: float = 1.0
    floor: float = 1e-3

    def __call__(self, D: Tensor, W: Tensor) -> Tensor:
        own, size = D.norm() / D.numel() ** 0.5, W.to(D.dtype).norm() / W.numel() ** 0.5
        factor: Tensor = size.clamp_min(self.floor) / (own / self.clip).clamp_min(1.0)
        return D * factor


@dataclass(frozen=True)
class Sub(Rule):
    """See the package. every: optimiser steps between refreshes of the frame (0: only once). decay: decoupled weight decay
    lr·wd before the step (torch's) or after it (HF's). first: an inner optimiser that the gradient passes before the frame
    sees it. finish: what the whole direction D passes before it is applied."""

    frame: Frame
    inner: Inner
    residual: Residual = Drop()
    carry: Carry = Keep()
    every: int = 200
    scale: float = 1.0
    decay: Literal["before", "after"] = "before"
    first: Inner | None = None
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.carry.fits(self.inner)
        self.residual.fits(self.frame)

    def floats(self, m: int, n: int) -> int:
        """Numbers of floating-point state for an m x n matrix: what the words say of themselves."""
        coordinates, own = self.frame.sizes(m, n)
        first = 0 if self.first is None else self.first.floats((m, n))
        return own + self.inner.floats(coordinates) + self.residual.floats(m, n) + first

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        (role,) = p
        W, s, lr = p[role], state[role], now.lr[role]
        G = g[role].to(torch.promote_types(W.dtype, torch.float32))
        t = int(s.setdefault("step", torch.zeros(())))
        inner, rest = s.setdefault("inner", {}), s.setdefault("residual", {})
        if self.first is not None:
            G, before = self.first(G, s.setdefault("first", {}))
            G = G * before if before != 1 else G
        G = self.residual.before(G, rest)
        if "frame" not in s or (self.every and t % self.every == 0):
            s["frame"] = self._refresh(G, W, s.get("frame"), inner, rest, now.draw(role, t))
        f = s["frame"]
        C = self.frame.down(f, G)
        U, gain = self.inner(C, inner)
        R = self.residual(Seen(G, C, U, self.frame, f, self.scale, gain), rest)
        if (wd := now.decay[role]) and self.decay == "before":
            W.mul_(1 - lr * wd)
        if self.finish is not None:
            D = self.frame.up(f, U) * self.scale
            W.add_(self.finish((D if R is None else D + R) * gain, W).to(W), alpha=-lr)
        else:
            if self.scale:
                self.frame.add(f, W, U, -lr * gain * self.scale)
            if R is not None:
                W.add_(R.to(W), alpha=-lr * gain)
        if wd and self.decay == "after":
            W.mul_(1 - lr * wd)
        self.frame.post(f, G, C, lr)
        s["step"] = s["step"] + 1

    def _refresh(self, G: Tensor, W: Tensor, old: Numbers | None, inner: Numbers, rest: Numbers, draw: Draw) -> Numbers:
        if old is None:
            return self.frame.refresh(G, W, None, draw)
        new = self.frame.refresh(self.carry.sight(G, self.inner, inner, lambda C: self.frame.up(old, C)), W, old, draw)
        held = self._momentum(old, inner) if self.residual.wants_lost else None
        self.carry(
            self.inner, inner, lambda C: self.frame.move(old, new, C), lambda V: self.frame.spread(old, new, V), draw
        )  # fmt: skip
        if held is not None:
            kept = self._momentum(new, inner)
            self.residual.lost(held if kept is None else held - kept, rest)
        return new

    def _momentum(self, f: Numbers, inner: Numbers) -> Tensor | None:
        name = next(iter(self.inner.first), None)
        return self.frame.up(f, self.inner.read(inner, name)) if name in inner else None


@dataclass(frozen=True)
class Plain(Rule):
    """torch's AdamW for one tensor (embeddings, norms, biases), with the fused kernel where there is one."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        for role, t in p.items():
            s = state[role]
            if "step" not in s:
                s |= {"step": torch.zeros(()), "m": torch.zeros_like(t), "v": torch.zeros_like(t)}
            fused = t.device.type in ("cpu", "cuda") and t.is_contiguous()  # as in methods.update.fused
            count = s["step"].to(t.device) if fused else s["step"]  # fused kernels read it where the tensor is; in the state it stays where it can be read
            adamw(
                [t], [g[role]], [s["m"]], [s["v"]], [], [count], fused=fused, foreach=False, amsgrad=False,
                beta1=self.betas[0], beta2=self.betas[1], lr=now.lr[role], weight_decay=now.decay[role],
                eps=self.eps, maximize=False,
            )  # fmt: skip
            if count is not s["step"]:
                s["step"] = s["step"] + 1
