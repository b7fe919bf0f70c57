"""The sentence: one matrix, its frame, its inner optimiser and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .carries import Carry, Keep
from .frames import Frame
from .inners import Inner
from .optimizer import Rule, Step
from .residuals import Drop, Residual, Seen


@dataclass(frozen=True)
class Sub(Rule):
    """See the package. every: optimiser steps between refreshes of the frame (0: only once). decay: decoupled weight decay
    lr·wd before the step (torch's) or after it (HF's)."""

    frame: Frame
    inner: Inner
    residual: Residual = Drop()
    carry: Carry = Keep()
    every: int = 200
    scale: float = 1.0
    decay: Literal["before", "after"] = "before"

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        (role,) = p
        W, s, lr = p[role], state[role], now.lr[role]
        G = g[role].to(torch.promote_types(W.dtype, torch.float32))
        t = int(s.setdefault("step", torch.zeros(())))
        inner, rest = s.setdefault("inner", {}), s.setdefault("residual", {})
        G = self.residual.before(G, rest)
        if "frame" not in s or (self.every and t % self.every == 0):
            old, draw = s.get("frame"), now.draw(role, t)
            new = self.frame.refresh(G, W, old, draw)
            if old is not None:
                self.carry(self.inner, inner, lambda C: self.frame.move(old, new, C), draw)
            s["frame"] = new
        f = s["frame"]
        C = self.frame.down(f, G)
        U, gain = self.inner(C, inner)
        if (wd := now.decay[role]) and self.decay == "before":
            W.mul_(1 - lr * wd)
        R = self.residual(Seen(G, C, U, self.frame, f, self.scale), rest)
        self.frame.add(f, W, U, -lr * gain * self.scale)
        if R is not None:
            W.add_(R.to(W), alpha=-lr * gain)
        if wd and self.decay == "after":
            W.mul_(1 - lr * wd)
        self.frame.post(f, G, C, lr)
        s["step"] = s["step"] + 1


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
            adamw(
                [t], [g[role]], [s["m"]], [s["v"]], [], [s["step"]], fused=t.device.type in ("cpu", "cuda"), foreach=False,
                amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=now.lr[role], weight_decay=now.decay[role],
                eps=self.eps, maximize=False,
            )  # fmt: skip
