"""Choose again which entries are trained."""

from __future__ import annotations

from ..sparse import rechoose
from . import Rule, View, rule


@rule(paper="arXiv:2506.00772")
class Reselect(Rule):
    """Every `every` optimiser steps a method with tensors v, I, I0, v0 chooses its entries from the weight as it is now
    (`chosen(W', K)`). W' itself does not change; entries that stay keep their moments, new ones start with none; the
    optimiser's step counter goes on.

    Source: Liu et al. 2025. Trap: with a large counter Adam no longer corrects new moments, so that the first moves of a
    new entry are up to (1 - b1) / sqrt(1 - b2) of lr.
    """

    every: int = 200

    def after(self, view: View) -> None:
        if view.step % self.every == 0:
            old = view.p.I
            new = view.method.chosen(view.weight(), len(old)).to(old.device)  # type: ignore[attr-defined]
            rechoose(view, old.clone(), new, view.p.v.shape, I=new)
