"""What a fused path asks of an operator besides applying it: to add itself in place, and its tensor's gradient.

All on flat activations x (T, n), y (T, m), g (T, m); operators hold tensors of the activations' dtype here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import BlockDiag, Dense, Diag, Op
from ..ops.core import Open


@Open[None]
def into(op: Op, y: Tensor, x: Tensor) -> None:
    """y += op x, in place."""
    y.add_(op(x))


@into.on(Dense)
def _(op: Dense, y: Tensor, x: Tensor) -> None:
    y.addmm_(x, op.w.mT)


@into.on(BlockDiag)
def _(op: BlockDiag, y: Tensor, x: Tensor) -> None:
    _blocks(y, op.t.shape[1]).baddbmm_(_blocks(x, op.t.shape[2]), op.t.mT)


@Open[None]
def back(op: Op, x: Tensor, g: Tensor) -> None:
    """x += opᵀ g, in place."""
    add = getattr(op, "back", None)  # an operator that touches few entries of x brings its own
    x.add_(op.rmv(g)) if add is None else add(x, g)


@back.on(Dense)
def _(op: Dense, x: Tensor, g: Tensor) -> None:
    x.addmm_(g, op.w)


@back.on(BlockDiag)
def _(op: BlockDiag, x: Tensor, g: Tensor) -> None:
    _blocks(x, op.t.shape[2]).baddbmm_(_blocks(g, op.t.shape[1]), op.t)


@Open[Tensor]
def grad(op: Op, x: Tensor, g: Tensor) -> Tensor:
    """d <g, op x> / d tensor, for operators that are one tensor: type(op)(tensor) is the operator again."""
    raise NotImplementedError


@grad.on(Dense)
def _(op: Dense, x: Tensor, g: Tensor) -> Tensor:
    return outer(g, x)


def outer(g: Tensor, x: Tensor) -> Tensor:
    """gᵀ x, (m, n), over the tokens; with the narrow one in front: the faster way round on a CPU (benchmarks/thin_products.py)."""
    return (x.mT @ g).mT if g.shape[1] > x.shape[1] else g.mT @ x


@grad.on(Diag)
def _(op: Diag, x: Tensor, g: Tensor) -> Tensor:
    return (g * x).sum(0)


@grad.on(BlockDiag)
def _(op: BlockDiag, x: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(_blocks(g, op.t.shape[1]).mT, _blocks(x, op.t.shape[2]))


def _blocks(x: Tensor, size: int) -> Tensor:
    """(T, k · size) -> (k, T, size), a view."""
    return x.view(x.shape[0], -1, size).transpose(0, 1)
