"""Laws of learning: a few optimiser steps towards a random dense target must use everything the method has."""

from __future__ import annotations

import torch

from ...ops import delta, rank_bound
from ...rules import asked_of
from ..tiny import values
from .base import Case, NotApplicable, law, must, ruled

STEPS, RATE = 40, 2e-2


@law()
def learns_with_its_whole_rank(case: Case) -> str:
    """40 Adam steps from the declared start towards W + a random dense matrix: the loss falls, and the change has the
    full rank the expression allows. A symmetric start, whose equal parts stay equal, passes every identity test and
    fails here."""
    model, x = case.one(), case.x(64, 16)
    with torch.no_grad():
        target, wide = model(x), model(x).shape[-1]
        target = target + torch.tanh(x @ values(16, wide, name="target", std=0.25, dtype=case.dtype))
        target = target + x @ values(16, wide, name="far", std=0.25, dtype=case.dtype)
    adapted = case.attach(model, move=False)
    optimizer = adapted.optimizer(lr=RATE, steps=STEPS)
    losses = []
    for _ in range(STEPS):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    must(losses[-1] < 0.999 * losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
    fall = f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
    try:
        _, L, W = case.affine(adapted, x)[0]
    except NotApplicable as why:
        return f"{fall}; no rank: {why}"
    op = delta(L.op, W)
    change = op.dense().detach()
    s = torch.linalg.svdvals(change)
    # what its zeros allow: the rank of random numbers in the same places (a sparse change may leave rows empty)
    generic = int(torch.linalg.matrix_rank(values(*change.shape, name="generic") * (change != 0)))
    rank, bound = int((s > 1e-5 * s[0]).sum()), min(rank_bound(op), generic)
    least = min(bound, getattr(case.method, "least_rank", bound))  # of a mask that has nothing to mask on a dense base
    if any(rule.allocates for rule in asked_of(adapted)):  # rules may have gated terms off
        least = min([bound, *adapted.ranks().values()])
    must(least <= rank <= bound, f"the change has rank {rank}, the expression allows {bound} (singular values {s[:8].tolist()})")
    return f"{fall}; rank {rank} of {bound}"


@law()
def every_step_moves_what_is_trained(case: Case) -> None:
    """After three steps every trained tensor has moved, and no frozen one, unless rules move it."""
    model, x = case.tiny(), case.x(8, 16)
    adapted = case.attach(model, move=False)
    before = {k: t.detach().clone() for k, t in adapted.state().items()}
    optimizer = adapted.optimizer(lr=RATE, steps=STEPS)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - case.x(8, 16, name="aim")).square().mean().backward()
        optimizer.step()
    trained, free = adapted.trainable(), ruled(adapted)
    if not trained:
        raise NotApplicable("it trains nothing")
    for name, t in adapted.state().items():
        moved = not torch.equal(t, before[name])
        if name in free:
            continue
        must(moved == (name in trained), f"{name} is {'trained' if name in trained else 'frozen'}, moved: {moved}")
