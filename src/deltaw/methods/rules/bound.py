"""Bound: rows that may not grow beyond a length."""

from __future__ import annotations

from . import Rule, View, rule


@rule(paper="arXiv:2410.17222")
class Bound(Rule):
    """t_i <- t_i min(1, e_i / |t_i|) after every optimiser step: rows i of `tensor` stay within the lengths `by`."""

    tensor: str = "D"
    by: str = "e"

    def after(self, view: View) -> None:
        t, most = getattr(view.p, self.tensor), getattr(view.p, self.by)
        view.set(self.tensor, t * (most / t.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)[:, None])
