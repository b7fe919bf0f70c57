"""A block of members in one batch, and the forwards of the layers while it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ShapeError
from ..ops import Affine, Map
from ..sites import Site
from ..sites.module import Shim


@dataclass(frozen=True)
class Members:
    """Members first ... first + count - 1 of a population; `groups`: how many equal groups of neighbours the whole has.

    The rows of a batch are dealt to the groups in turn: members of one group see the same rows, member by member.
    """

    first: int
    count: int
    population: int
    groups: int = 1

    def spread(self, batch: Any) -> Any:
        """Tensors (rows, ...), anywhere in lists and dicts -> (count · rows / groups, ...)."""
        sizes = {len(t) for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim()}
        if len(sizes) != 1 or (rows := sizes.pop()) % self.groups or not rows:
            raise ShapeError(
                f"tensors with one number of rows, a multiple of {self.groups} groups, were expected; found {sizes or rows} rows"
            )
        each, size = rows // self.groups, self.population // self.groups
        start = torch.arange(self.first, self.first + self.count) // size * each
        index = (start[:, None] + torch.arange(each)).flatten()
        return tree_map(lambda t: t[index.to(t.device)] if isinstance(t, Tensor) and t.dim() else t, batch)

    def mean(self, scores: Tensor) -> Tensor:
        """One number per row -> one per member."""
        if scores.dim() != 1 or len(scores) % self.count:
            raise ShapeError(
                f"score gives one number per row of its batch; found {tuple(scores.shape)} for {self.count} members"
            )
        return scores.detach().to("cpu", torch.float64).reshape(self.count, -1).mean(1)


def blocks(x: Tensor, count: int, last: bool = True) -> Tensor:
    """x (count · k, ..., n) -> (count, all between, n); without `last`, (count, all)."""
    if x.shape[0] % count:
        raise ShapeError(
            f"a layer sees {x.shape[0]} slices for {count} members: it gets no rows of the batch first (positions, or tokens "
            "picked by a router), so members cannot be told apart there; leave it out"
        )
    return x.reshape(count, -1, x.shape[-1]) if last else x.reshape(count, -1)


class Probed(Map):
    """The base once for all rows, and B_i A_i x + b_i for those of member i. B (count, m, k), A (count, k, n), b (count, m)."""

    def __init__(self, base: Affine, B: Tensor, A: Tensor, b: Tensor | None = None):
        self.base, self.B, self.A, self.b = base, B, A, b

    def __call__(self, x: Tensor) -> Tensor:
        z = torch.bmm(blocks(x, len(self.A)), self.A.mT.to(x.dtype))
        return self._added(self.base(x), z)

    def cols(self, i: Tensor) -> Tensor:
        ids = blocks(i, len(self.A), last=False)[:, None].expand(-1, self.A.shape[1], -1)
        return self._added(self.base.cols(i), self.A.gather(2, ids).mT)

    def _added(self, y: Tensor, z: Tensor) -> Tensor:
        d = torch.bmm(z, self.B.mT.to(z.dtype))
        if self.b is not None:
            d = d + self.b[:, None].to(d.dtype)
        return y + d.reshape(y.shape).to(y.dtype)


class Cored(Map):
    """The base, and L C_i R x for the rows of member i: L (m, r) and R (r, n) once for all, C (count, r, r)."""

    def __init__(self, base: Affine, L: Tensor, C: Tensor, R: Tensor):
        self.base, self.L, self.C, self.R = base, L, C, R

    def __call__(self, x: Tensor) -> Tensor:
        return self._added(self.base(x), F.linear(x, self.R.to(x.dtype)))

    def cols(self, i: Tensor) -> Tensor:
        return self._added(self.base.cols(i), F.embedding(i, self.R.mT))

    def _added(self, y: Tensor, z: Tensor) -> Tensor:
        z = torch.bmm(blocks(z, len(self.C)), self.C.mT.to(z.dtype)).reshape(z.shape)
        return y + F.linear(z, self.L.to(z.dtype)).to(y.dtype)


class Forward:
    """A layer's forward under a map."""

    def __init__(self, site: Site, call: Callable[..., Any], L: Map):
        self.site, self.call, self.L = site, call, L

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.site.run(self.L, self.call, args, kwargs)


class Copies:
    """The forward of a small module (a norm) once per member, each under its own tensors (count, ...)."""

    def __init__(self, shim: Shim, tensors: dict[str, Tensor]):
        self.shim, self.tensors = shim, tensors

    def __call__(self, x: Tensor) -> Any:
        count = len(next(iter(self.tensors.values())))
        parts = x.reshape(count, x.shape[0] // count, *x.shape[1:]) if x.shape[0] % count == 0 else blocks(x, count)
        out = [self.shim.under({k: t[i] for k, t in self.tensors.items()}, (part,), {}) for i, part in enumerate(parts)]
        return torch.cat(out)


@contextmanager
def installed(model: nn.Module, forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """The model evaluates, without gradients, with these forwards; afterwards it is as it was, also after an error."""
    before, hooks = {m: m.__dict__.get("forward") for m in forwards}, []
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
            hooks.append(module.register_forward_pre_hook(_nothing))  # torch's fused encoder layer skips what has none
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, old in before.items():
            if old is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = old
        for module, mode in modes.items():
            module.training = mode


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook for its presence only."""
