"""What modules read: the rows of their inputs, seen once where several modules read the same tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError
from .base import Site

KINDS = ("linear", "opaque", "conv1d_hf")


class Readers:
    """Hands what modules read to `take(name, x)`; of those that read the same tensor only the first one's name is told.

    `leader` is that name for every site; it is found in the first pass, by the identity of the tensor itself.
    """

    def __init__(self, sites: Iterable[Site], take: Callable[[str, Tensor], None]):
        self.take, self.leader = take, dict[str, str]()
        self.seen: list[tuple[weakref.ref[Tensor], str]] = []
        self.hooks: list[Any] = []
        for site in sites:
            if site.kind not in KINDS:
                raise SpecError(f"{site.name}: the inputs of a {site.kind} are asked for; linear layers read vectors")
            self.hooks.append(site.module.register_forward_pre_hook(partial(self.see, site.name), with_kwargs=True))

    def see(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if name not in self.leader:
            self.leader[name] = next((other for ref, other in self.seen if ref() is x), name)
            self.seen.append((weakref.ref(x), name))
        if self.leader[name] == name:
            self.take(name, x.detach())

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def rows(x: Tensor, keep: Tensor | None) -> Tensor:
    """The vectors in x (..., n) at the positions that `keep` marks (all where it does not fit x), in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if keep is not None and keep.shape == x.shape[:-1]:
        return wide[keep.to(x.device)]
    return wide.reshape(-1, x.shape[-1])
