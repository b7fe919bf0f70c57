"""Tasks one after the other: what one has taught becomes a constant, and the adapter starts afresh."""

from __future__ import annotations

import torch
from torch import Tensor

from .attach import Adapted
from .entry import OFFSET, make
from .errors import SpecError
from .ops import Affine, delta, factors
from .spec import Param, Start


@torch.no_grad()
def next_task(adapted: Adapted, number: int = 1) -> dict[str, int]:
    """Move the learned update of every site into the constant beside its weight, and start the adapter afresh there.

    The function of the model does not change (the fresh adapter starts at the base's output). The base is not touched: the
    constant is kept and saved with the adapter, as factors that get longer with every task. number: which task comes, for the random
    numbers of its start. Returns the rank that each site has added. Make a new optimiser afterwards.
    Errors: SpecError for a method that is not W plus exact factors, or does not start at the base's output.
    """
    added = {}
    for a in adapted.assignments:
        if a.shares is not None:
            continue
        entry, site = adapted.entries()[a.site.name], a.site
        if a.method.start != "identity":
            raise SpecError(f"{site.name}: {a.method.key} does not start at the base's output, so starting afresh would change the model")
        W = entry.shifted(site.leaf().op)
        was = entry.training
        entry.eval()
        L = a.method.layer(Affine(W), entry.tensors(dict.fromkeys(entry.signals.values(), torch.empty(0))))
        entry.train(was)
        pair = factors(delta(L.op, W)) if isinstance(L, Affine) else None
        if pair is None:
            raise SpecError(f"{site.name}: {a.method.key} has no exact factors to move into the constant")
        B, A = (t.detach() for t in pair)
        live = (B != 0).any(0) & (A != 0).any(1)
        if bool(live.any()):
            entry.move(B[:, live].clone(), A[live].clone())
        added[site.name] = int(live.sum())
        start = Start(site.name, site.kind, entry.shifted(site.leaf().op), adapted.plan.seed, a.method)
        start.p, start.own = entry.tensors(dict.fromkeys(entry.signals.values(), torch.empty(0))), entry.own
        for name, param in a.method.declare(site).items():
            if isinstance(param, Param) and param.scope == "site" and name not in OFFSET and (param.train or param.ruled):
                _afresh(entry.get(name), make(param, param.shape, _at(start, number), name, False))
        entry.kept = None
    return added


def _at(start: Start, number: int) -> Start:
    """The same stream of another name: a task has random numbers of its own."""
    again = Start(f"{start.name}/task{number}", start.kind, start.W, start.seed, start.method)
    again.p, again.own = start.p, start.own
    return again


def _afresh(t: Tensor, value: Tensor) -> None:
    t.data, t.grad = value.to(t), None
