"""What passes a weight while it is being watched: the gradient of one that is not itself trained, the size of its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError
from .base import Site


class Watch:
    """Sums dy xᵀ of a module from now on: the gradient of its weight, which is not itself trained.

    always: also while no adapter is on the module (it ends with the last one otherwise). keep: the device of the sum.
    """

    def __init__(self, site: Site, flip: bool, always: bool = False, keep: torch.device | str | None = None):
        self.kind, self.shape, self.flip = site.kind, site.shape[::-1] if flip else site.shape, flip
        if self.kind not in ("linear", "opaque", "conv1d_hf", "embedding"):
            who = "a probe" if always else "a rule"
            raise SpecError(f"{site.name}: {who} asks for the gradient of the weight of a {self.kind}; linear layers have one")
        self.always, self.keep = always, keep
        self.sum: Tensor | None = None
        self.hook = site.module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        if not self.always and "forward" not in vars(module):  # no adapter is on it any more
            self.hook.remove()
        elif isinstance(y, Tensor) and y.requires_grad:
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            y.register_hook(lambda g: self.add(x, g))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def add(self, x: Tensor, g: Tensor) -> None:
        g = g.reshape(-1, g.shape[-1])
        if self.kind == "embedding":
            n = self.shape[0] if self.flip else self.shape[1]
            new = g.new_zeros(n, g.shape[1], dtype=torch.float32).index_add_(0, x.flatten(), g.float()).mT
        else:
            new = g.mT @ x.reshape(-1, x.shape[-1]).to(g.dtype)
        new = (new.mT if self.flip else new).to(torch.promote_types(new.dtype, torch.float32))
        new = new if self.keep is None else new.to(self.keep)
        self.sum = new if self.sum is None else self.sum.add_(new)


class Inputs(Watch):
    """Sums the squares of a module's inputs, feature by feature (n,), over the forward passes that are trained on."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        if "forward" not in vars(module):
            self.hook.remove()
        elif isinstance(y, Tensor) and y.requires_grad:
            self.square((args[0] if args else next(iter(kwargs.values()))).detach())

    def square(self, x: Tensor) -> None:
        if self.kind == "embedding":
            new = torch.bincount(x.flatten(), minlength=self.shape[0] if self.flip else self.shape[1]).float()
        else:
            new = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32)).square().sum(0)
        self.sum = new if self.sum is None else self.sum.add_(new)


def several() -> bool:
    """Is this one process of several?"""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def place() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several() else (0, 1)


def mean_of_processes(t: Tensor) -> Tensor:
    """As DDP does it for the gradients of what is trained."""
    if several():
        torch.distributed.all_reduce(t)
        t /= place()[1]
    return t
