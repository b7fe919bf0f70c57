"""The instance-level forward of one module under a bank: the module's own, then the product of what is active."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..segments import Stack
from ..sites import Site
from ..sites.base import ModuleBase
from .arena import Arena
from .mixture import Group, Mixture
from .slots import Slots


class State:
    """What the forwards of one bank look at: an adapter, a mixture, or None for the base. Every choice is an object of
    its own, so a forward sees a change by identity."""

    def __init__(self) -> None:
        self.mode: Slots | Mixture | None = None
        self.active: Slots | None = None


class Spot:
    """A plain object, so that it survives pickle and deepcopy. `run` is worked out at the first call after a change."""

    occupied = "belongs to a deltaw.Bank: call bank.close() before attaching, or give the adapter to the bank with bank.add"

    def __init__(self, site: Site, arena: Arena, state: State):
        self.name, self.arena, self.state = site.name, arena, state
        base: Any = site.leaf().op
        assert isinstance(base, ModuleBase)
        self.module, self.base = base.module, base
        self.set_forward = base.set_forward
        self.lookup = site.kind == "embedding"
        self.fresh = site.kind in ("linear", "conv1d_hf") and base.set_forward is None  # its output is nobody else's
        self.hook: Any = None
        self.seen: Any = None
        self.run: One | Many | None = None

    def factors(self, slots: Slots) -> Stack:
        return self.arena.view(*slots.at[self.name], slots.ranks[self.name])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = self.base.forward(*args, **kwargs)
        if self.seen is not self.state.mode:
            self.refresh()
        if self.run is None:
            return y
        return self.run(args[0] if args else next(iter(kwargs.values())), y)

    def refresh(self) -> None:
        mode = self.state.mode
        if isinstance(mode, Mixture):
            if self.name not in mode.made:  # a mixture that comes again finds everything in place
                mode.made[self.name] = self.mixed(mode)
            self.run = mode.made[self.name]
        else:
            self.run = One(self, mode, None) if mode is not None and self.name in mode.at else None
        self.seen = mode

    def mixed(self, mixture: Mixture) -> One | Many | None:
        there = [a for a in mixture.work.order if self.name in a.at]
        if not there:
            return None
        return One(self, there[0], mixture) if mixture.whole else Many(self, Group(mixture, self))

    def scaled(self, d: Tensor, y: Tensor) -> Tensor:
        """y + d, where an embedding that scales its rows scales those of the delta too."""
        factor = getattr(self.module, "embed_scale", None) if self.lookup else None
        return y + (d if factor is None else d * factor).reshape(y.shape).to(y.dtype)


class One:
    """One adapter for the whole batch: y += B A x."""

    def __init__(self, spot: Spot, slots: Slots, mixture: Mixture | None):
        self.spot, self.mixture = spot, mixture
        B, A = spot.factors(slots)
        self.A, self.B = A.mT, B.mT  # (n, r), (r, m)
        self.n, self.m, self.dtype = A.shape[1], B.shape[0], B.dtype
        self.fresh = spot.fresh

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.mixture is not None:
            self.mixture.tokens(x.shape, 0 if self.spot.lookup else self.n, self.spot.name)
        if self.fresh and x.dtype is self.dtype and y.dtype is self.dtype and not torch.is_grad_enabled():
            y.view(-1, self.m).addmm_(x.reshape(-1, self.n).mm(self.A), self.B)
            return y
        A, B = self.A, self.B
        if self.spot.lookup:
            return self.spot.scaled(F.embedding(x, A) @ B, y)
        return self.spot.scaled(x @ A.to(x.dtype) @ B.to(x.dtype), y)


class Many:
    """Every row under its own adapter."""

    def __init__(self, spot: Spot, group: Group):
        self.spot, self.group = spot, group
        self.n, self.m, self.dtype = spot.arena.n, spot.arena.m, spot.arena.dtype
        self.fresh = spot.fresh

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        spot = self.spot
        k = self.group.mixture.tokens(x.shape, 0 if spot.lookup else self.n, spot.name)
        if self.fresh and x.dtype is self.dtype and y.dtype is self.dtype and not torch.is_grad_enabled():
            self.group.at(k).add(x.reshape(-1, self.n), y.view(-1, self.m))
            return y
        order = self.group.sorted(k)
        own = x.reshape(order.rows, -1) if spot.lookup else x.reshape(order.rows, -1, self.n)
        return spot.scaled(order.products(own, self.group.stacks, spot.lookup), y)
