"""AVF: the vectors that have moved most rest for a while."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from . import Rule, View, rule


@rule(paper="arXiv:2503.19530")
class AVF(Rule):
    """Adaptive Vector Freezing: after `t_i` steps and then every `t_f`, `n_f` times in all, the `k` trained tensors of the
    adapter with the largest strength are frozen until the next time, the others released; after the last all train.

    Strength: S = mean_i |v_i - v_i(0)|, averaged over the steps with weight `beta` on what was. A frozen tensor has no
    gradient in the step, so neither weight decay nor momentum moves it, and its moments wait.
    Source: Hegde et al. 2025 (VectorFit) as far as its repository says: a training strength for each vector, the
    over-trained ones frozen for a time. Readings: S and its average, k over all sites together, every default.
    Trap: with k as large as the number of tensors nothing would train: refused.
    """

    t_i: int = 100
    t_f: int = 50
    k: int = 5
    n_f: int = 10
    beta: float = 0.99

    def start(self, view: View) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, t in view.trained().items():
            none = torch.zeros((), dtype=t.dtype, device=t.device)
            out |= {f"start.{name}": t.detach().clone(), f"strength.{name}": none, f"rests.{name}": none.clone()}
        return out

    def before(self, view: View) -> None:
        if self.t_i <= view.step < self.t_i + self.n_f * self.t_f:
            for name, t in view.trained().items():
                if view.s[f"rests.{name}"]:
                    t.grad = None

    def after_all(self, views: list[View]) -> None:
        found = [(view.s, name, t) for view in views for name, t in view.trained().items()]
        for s, name, t in found:
            s[f"strength.{name}"].lerp_((t - s[f"start.{name}"]).abs().mean(), 1.0 - self.beta)
        turn, odd = divmod(views[0].step - self.t_i, self.t_f)
        if odd or not 0 <= turn <= self.n_f:
            return
        if self.k >= len(found):
            raise SpecError(f"avf: k = {self.k} of {len(found)} trained tensors would be frozen, and nothing trained")
        strength = torch.stack([s[f"strength.{name}"].cpu() for s, name, _ in found])
        most = set(strength.topk(self.k).indices.tolist()) if turn < self.n_f else set()
        for i, (s, name, _) in enumerate(found):
            s[f"rests.{name}"].fill_(float(i in most))
