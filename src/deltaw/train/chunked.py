"""Cross-entropy behind an output head, a chunk of rows at a time, with the gradient computed in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BUDGET = 128 << 20  # bytes of one chunk's logits in float32
LEAST = 64  # rows: below that reading the head's weight costs more than multiplying by it


def chunk_rows(width: int, budget: int = BUDGET) -> int:
    """How many rows of logits over a vocabulary of `width` fit into `budget` bytes in float32; never below 64."""
    return max(LEAST, budget // (4 * max(width, 1)))


def chunked_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
    """sum_i -log softmax(head(hidden_i))[targets_i], in float32 at least; no more than `rows` rows of logits exist at once.

    head: any module or function from (k, n) to (k, vocabulary) that treats rows alike. hidden: (N, n). targets: (N,)
    integers, all of them real labels. Equals F.cross_entropy(head(hidden).float(), targets, reduction="sum") to rounding.

    Where gradients are on, every chunk is differentiated at once, dL/dlogits = softmax - onehot, and its logits are
    dropped: what stays for the backward pass is the gradient by `hidden` and by each trained tensor that the head's
    graph leads to (its own, an adapter's, one shared with other layers), times the incoming gradient there. Not twice
    differentiable. A head that leads into an older graph (say, under adapter weights that are being learned) cannot be
    differentiated more than once, so all its logits are computed in the ordinary way.
    """
    if not torch.is_grad_enabled():
        losses = [_ordinary(head, hidden[i:j], targets[i:j]) for i, j in _chunks(len(targets), rows)]
        return torch.stack(losses).sum() if losses else _ordinary(head, hidden, targets)
    if not len(targets):
        return _ordinary(head, hidden, targets)  # zero, and tied to the graph all the same
    before = _sequence()
    downs: list[Tensor] = []
    ups: dict[Tensor, Tensor] = {}
    losses = []
    for i, j in _chunks(len(targets), rows):
        x = hidden[i:j].detach().requires_grad_(hidden.requires_grad)
        y = head(x)
        leaves = _leaves(y, before)
        if leaves is None:
            return _ordinary(head, hidden, targets)
        loss, d = _loss_and_gradient(y.detach(), targets[i:j])
        losses.append(loss)
        found: tuple[Tensor | None, ...] = ()
        if leaves:
            found = torch.autograd.grad(y, leaves, d.to(y.dtype), allow_unused=True)
        del y, d
        by = dict(zip(leaves, found))
        if x.requires_grad:
            down = by.pop(x, None)
            downs.append(torch.zeros_like(x) if down is None else down)
        for leaf, own in by.items():
            if own is not None:  # summed in float32 at least, and never in place: two leaves may share one gradient
                own = own.to(torch.promote_types(own.dtype, torch.float32))
                ups[leaf] = ups[leaf] + own if leaf in ups else own
    total = torch.stack(losses).sum()
    if not downs:
        return _Known.apply(total, tuple(ups.values()), *ups) if ups else total  # type: ignore[no-untyped-call]
    gradients = (torch.cat(downs) if len(downs) > 1 else downs[0], *ups.values())
    return _Known.apply(total, gradients, hidden, *ups)  # type: ignore[no-any-return,no-untyped-call]


def _ordinary(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    y = head(hidden)
    return F.cross_entropy(y.to(torch.promote_types(y.dtype, torch.float32)), targets, reduction="sum")


def _chunks(count: int, rows: int) -> list[tuple[int, int]]:
    """Cuts of equal size, none above `rows`: a short last chunk would read the head's weight for little."""
    if not count:
        return []
    size = -(-count // -(-count // rows))
    return [(i, min(i + size, count)) for i in range(0, count, size)]


@torch.no_grad()
def _loss_and_gradient(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of logits y (k, V) and its gradient softmax(y) - onehot(t), both in float32 at least."""
    p = torch.log_softmax(y, -1, dtype=torch.promote_types(y.dtype, torch.float32))
    t = t[:, None]
    loss = -p.gather(1, t).sum()
    p = p.exp_()
    return loss, p.scatter_(1, t, p.gather(1, t) - 1)


def _sequence() -> int:
    """Autograd numbers the nodes of a thread's graphs in the order of their making: the next number."""
    node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return node._sequence_nr()  # type: ignore[no-any-return]


def _leaves(y: Tensor, before: int) -> list[Tensor] | None:
    """The leaf tensors that y's graph leads to, in the order they are met; None if it leads into a graph from before."""
    found: dict[Tensor, None] = {}
    if not y.requires_grad:
        return []
    nodes: list[Any] = [y.grad_fn]
    met = set(nodes)
    while nodes:
        node = nodes.pop()
        if isinstance(node, AccumulateGrad):
            found[node.variable] = None
        elif node._sequence_nr() < before:
            return None
        for after, _ in node.next_functions:
            if after is not None and after not in met:
                met.add(after)
                nodes.append(after)
    return list(found)


AccumulateGrad: Any = type(torch.autograd.graph.get_gradient_edge(torch.zeros((), requires_grad=True)).node)


class _Known(torch.autograd.Function):
    """`total`, whose gradient by each of `inputs` is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.dtypes = [x.dtype for x in inputs]
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *((d * g).to(dtype) for d, dtype in zip(ctx.saved_tensors, ctx.dtypes)))
