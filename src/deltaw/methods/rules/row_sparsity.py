"""Row sparsity: of every row of A and every column of B only the most important entries stay."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Rule, View, rule


def keep(t: Tensor, score: Tensor, k: int) -> Tensor:
    """t, with the entries of every row set to zero whose score is below the k-th smallest there; ties stay."""
    return t * (score >= score.kthvalue(k, -1, keepdim=True).values) if k else t


@rule(paper="arXiv:2406.10777")
class RowSparsity(Rule):
    """Before a step I <- beta I + (1 - beta) |t ⊙ dL/dt|, at first |t ⊙ dL/dt|, for t = A and B; after it the entries of a
    row of A (n long) whose I is below the floor(n (1 - kappa))-th smallest of that row become 0, so do those of a column of B.

    kappa(t) = 1 before step t_i, then kappa + (1 - kappa)(1 - (t - t_i)/(t_f - t_i))³, from t_f on kappa; t counts the
    steps made. There is no mask: what is at zero scores nothing, so its average falls fastest and it is set to zero again,
    whatever the optimiser's momentum made of it.
    """

    kappa: float = 0.05
    t_i: int = 3
    t_f: int = 20
    beta: float = 0.8

    def kept(self, t: int) -> float:
        """kappa(t)."""
        if t < self.t_i:
            return 1.0
        left = 0.0 if t >= self.t_f else 1.0 - (t - self.t_i) / (self.t_f - self.t_i)
        return self.kappa + (1.0 - self.kappa) * left**3

    def start(self, view: View) -> dict[str, Tensor]:
        return {k: torch.full_like(getattr(view.p, k), -1.0) for k in "AB"}  # no score yet

    def before(self, view: View) -> None:
        for k in "AB":
            t, old = getattr(view.p, k), view.s[k]
            if t.grad is not None:
                new = (t * t.grad).abs()
                view.s[k] = torch.where(old < 0, new, self.beta * old + (1.0 - self.beta) * new)

    def after(self, view: View) -> None:
        drop = 1.0 - self.kept(view.step)
        A, B = view.p.A, view.p.B
        view.set("A", keep(A, view.s["A"], int(A.shape[1] * drop)))
        view.set("B", keep(B.mT, view.s["B"].mT, int(B.shape[0] * drop)).mT)
