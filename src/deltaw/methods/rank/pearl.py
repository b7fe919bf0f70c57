"""PEARL: ranks by how far a short training moves each weight from its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from ...spec import Start
from . import allocators, ranks


@ranks(paper="arXiv:2505.11998", needs=("original",))
class PEARL:
    """r_l = the smallest k for which the k largest singular values of W_short - W hold a share tau of the squares; 0 (the site is left
    out) where nothing moved. W is the model's weight, the reference; W_short that of the same model after a short phase on the task:
    stats = deltaw.probe(model, (), plan, original=the_model_after_it).

    A reading of the abstract: ranks grow with the distance from the reference weights, no rehearsal; the energy rule and tau are ours.
    Source: Bhat et al. 2025. Trap: a head that is new to the task moves most: leave it out; a noisy phase inflates ranks.
    """

    tau: float = 0.9
    r_max: int = 64

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Tensor]]) -> dict[str, int]:
        out = {}
        for s in starts:
            moved = stats[s.name]["original"].double() - s.dense().double().to(stats[s.name]["original"].device)
            out[s.name] = min(allocators.energy(torch.linalg.svdvals(moved), self.tau), self.r_max)
        return out
