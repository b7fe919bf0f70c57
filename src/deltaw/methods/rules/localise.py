"""Find the sub-matrix that matters, layer by layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..sparse import rechoose
from . import Rule, View, rule


def block(score: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column sets that cover much of a score: the best of rows and columns by their whole sums; rows first, then
    columns within them; and the reverse."""

    def most(sums: Tensor, count: int) -> Tensor:
        return sums.topk(count).indices.sort().values

    I, J = most(score.sum(1), rows), most(score.sum(0), columns)  # noqa: E741
    found = [(I, J), (I, most(score[I].sum(0), columns)), (most(score[:, J].sum(1), rows), J)]
    return max(found, key=lambda b: float(score[b[0]][:, b[1]].sum()))


@rule(paper="arXiv:2507.04487")
class Localise(Rule):
    """In the slot of T steps of its layer, step // T mod L = l, a method with tensors v, I, J, I0, v0 watches its gradients:

    q = |t - t²/2| for t = W' ⊙ G (first: |t|; second: t²); Ī <- 0.85 Ī + 0.15 q; Ū <- 0.85 Ū + 0.15 |q - Ī|. At the end of
    the slot I x J covers as much as can be found of Ī ⊙ Ū; moments start at zero (the counter does not), W' stays, and the
    next T steps are slowed down by 0, 1/T, 2/T, … Source: Wang et al. 2025. Reading: second means t², not its half.
    """

    T: int = 100
    importance: Literal["mixed", "first", "second"] = "mixed"
    beta: float = 0.85

    def watches(self, view: View) -> bool:
        layer, layers = view.order
        return view.step // self.T % layers == layer

    def before(self, view: View) -> None:
        if self.watches(view):
            t = view.weight() * view.gradient()
            q = {"mixed": (t - t.square() / 2).abs(), "first": t.abs(), "second": t.square()}[self.importance]
            s = view.s if view.step % self.T else {"I": torch.zeros_like(q), "U": torch.zeros_like(q)}
            view.s["I"] = s["I"].lerp(q, 1 - self.beta)
            view.s["U"] = s["U"].lerp((q - view.s["I"]).abs(), 1 - self.beta)
        if "moved" in view.s:
            done = view.step - int(view.s["moved"])
            if done < self.T:
                view.damp("v", done / self.T)
            else:
                del view.s["moved"]

    def after(self, view: View) -> None:
        if "I" in view.s and view.step % self.T == 0:
            p, n, device = view.p, view.base().shape[1], view.p.v.device
            I, J = block(view.s.pop("I") * view.s.pop("U"), *p.v.shape)  # noqa: E741
            old, new = ((a[:, None] * n + b).flatten().to(device) for a, b in ((p.I, p.J), (I, J)))
            rechoose(view, old, new, p.v.shape, fresh=True, I=I, J=J)
            view.s["moved"] = torch.tensor(view.step)
