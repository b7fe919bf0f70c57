"""Ramp: a number that grows from 0 to 1."""

from __future__ import annotations

from . import Rule, View, rule


@rule(paper="arXiv:2507.05566")
class Ramp(Rule):
    """u <- min(u + 1 / T, 1) after every optimiser step: u(t) = min(t / T, 1) from u = 0.

    The number itself says how far it is, so a loaded adapter goes on from there, also under a new optimiser.
    """

    T: int = 100
    tensor: str = "u"

    def after(self, view: View) -> None:
        u = getattr(view.p, self.tensor)
        view.set(self.tensor, ((u * self.T).round() + 1).div(self.T).clamp(max=1.0))
