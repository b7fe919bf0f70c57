"""A network beside the model, made like its first block, and a state that rides along (no method imports another)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout, gelu, linear

from ..sites.block import Rider
from ..spec import Declared, Param, Tensors, normal, ones, zeros


def copies(site: Any, layers: int) -> Declared:
    """The tensors of new blocks, "net.0.…" and on, and of the norm behind them, "norm.…"."""
    parts = [(f"net.{j}.", site.net) for j in range(layers)] + ([("norm.", site.norm)] if site.norm is not None else [])
    return {f"{before}{k}": Param(tuple(t.shape), _fresh(k, t)) for before, m in parts for k, t in m.named_parameters()}


def _fresh(name: str, t: Tensor) -> Callable[..., Tensor]:
    return normal(0.02) if t.dim() > 1 else zeros if name.endswith("bias") else ones


def inside(p: Tensors, before: str) -> dict[str, Tensor]:
    return {k[len(before) :]: getattr(p, k) for k in p.names() if k.startswith(before)}


class Shadowed(Rider):
    def __init__(self, p: Tensors, alpha: float, rate: float, layers: int):
        self.p, self.alpha, self.rate, self.layers = p, alpha, rate, layers
        self.ride, self.trained = p.ride, p.up.requires_grad  # type: ignore[assignment]

    def seed(self, h: Tensor, net: Callable[[Tensor, dict[str, Tensor]], Tensor], norm: nn.Module | None) -> Tensor:
        for j in range(self.layers):
            h = net(h, {k: t.to(h.dtype) for k, t in inside(self.p, f"net.{j}.").items()})
        if norm is None:
            return h
        s: Tensor = functional_call(norm, {k: t.to(h.dtype) for k, t in inside(self.p, "norm.").items()}, (h,))
        return s

    def enter(self, h: Tensor, s: Tensor) -> Tensor:
        d = dropout((h - s).to(self.p.up.dtype), self.rate, self.p.training)
        return self.alpha * linear(linear(d, self.p.down), self.p.up)

    def leave(self, y: Tensor, s: Tensor) -> Tensor:
        g, t = torch.sigmoid(self._two("G", y)), self._two("T", y)
        return ((1 - g) * s.to(g.dtype) + g * t).to(s.dtype)

    def _two(self, w: str, y: Tensor) -> Tensor:
        one, a, two, b = (getattr(self.p, w + k) for k in "1a2b")
        return linear(gelu(linear(y.to(one.dtype), one, a)), two, b)
