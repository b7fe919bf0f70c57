"""Adaptive allocation of groups: fewer and fewer of them go on being trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from . import Rule, rule


@rule(paper="OpenReview:8ZdWmpYxT0")
class ASA(Rule):
    """Of all groups of rows at all sites (a method with A (K, ...), B (m, ...) and group (m,), that of every row) only the
    best go on being trained: target + (all - target) (1 - (t - begin) / (end - begin))^power of them, at every `every`-th
    step t from `begin` to `end`. A group that is left out keeps its values from then on.

    Score: mean of I · U over the group's A plus the same over its B; I an average (rate 1 - beta_i) of |w dw|, U one of its
    deviations | |w dw| - I |, both from zero again after every choice. Source: HF PEFT 0.21.2 (`update_and_allocate`).
    Trap: PEFT keeps those strictly above the k-th score, one fewer than it asks for; here the k-th stays.
    """

    target: int = 50
    begin: int = 50
    end: int = 1000
    every: int = 100
    beta_i: float = 0.85
    beta_u: float = 0.85
    power: float = 3.0

    def start(self, view: Any) -> dict[str, Tensor]:
        if not {"A", "B", "group"} <= set(view.p.names()) or self.begin >= self.end:
            raise SpecError(f"{view.name}: asa chooses among groups (tensors A, B, group) from begin to a later end; found {self}")
        A, B = (t.detach() for t in (view.p.A, view.p.B))
        average = {f"{word}{name}": torch.zeros_like(t) for name, t in (("A", A), ("B", B)) for word in "IU"}
        return {"on": torch.ones(len(A), dtype=torch.bool, device=A.device), "A": A.clone(), "B": B.clone(), **average}

    def frozen(self, view: Any) -> tuple[tuple[str, Tensor, Tensor], ...]:
        """(name, tensor, where it is frozen along its first axis)."""
        off = ~view.s["on"]
        return ("A", view.p.A, off), ("B", view.p.B, off[view.p.group])

    def before(self, view: Any) -> None:
        for _, t, off in self.frozen(view):
            if t.grad is not None:
                t.grad[off] = 0

    def after_all(self, views: list[Any]) -> None:
        for view in views:
            for name, t, off in self.frozen(view):
                t[off] = view.s[name][off]  # momentum and weight decay would move it
        t = views[0].step
        if not self.begin <= t <= self.end:
            return
        for view in views:
            self.note(view)
        if t % self.every == 0:
            self.choose(views, (1.0 - (t - self.begin) / (self.end - self.begin)) ** self.power)

    def note(self, view: Any) -> None:
        for name in "AB":
            t, mean, far = getattr(view.p, name), view.s[f"I{name}"], view.s[f"U{name}"]
            if t.grad is not None:
                now = (t * t.grad).abs()
                far.lerp_((now - mean).abs(), 1.0 - self.beta_u)
                mean.lerp_(now, 1.0 - self.beta_i)

    def choose(self, views: list[Any], left: float) -> None:
        scores = []
        for view in views:
            K, g = len(view.s["on"]), view.p.group
            of_A = (view.s["IA"] * view.s["UA"]).flatten(1).mean(1)
            rows = (view.s["IB"] * view.s["UB"]).flatten(1).mean(1)
            of_B = rows.new_zeros(K).index_add(0, g, rows) / torch.bincount(g, minlength=K).clamp_min(1)
            scores.append(torch.where(view.s["on"], of_A + of_B, float("-inf")).cpu())
        every = torch.cat(scores)
        k = min(int(self.target + (len(every) - self.target) * left), int(every.isfinite().sum()))
        best = torch.zeros(len(every), dtype=torch.bool)
        best[every.topk(max(k, 0)).indices] = True
        for view, on in zip(views, torch.split(best, [len(s) for s in scores]), strict=True):
            view.s["on"] = on.to(view.s["on"].device)
            view.s["A"], view.s["B"] = view.p.A.detach().clone(), view.p.B.detach().clone()
            for word in ("IA", "UA", "IB", "UB"):
                view.s[word].zero_()
