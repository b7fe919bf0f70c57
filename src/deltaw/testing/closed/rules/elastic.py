"""Shears' draws by hand: the scale alpha / max(ranks) at every rank, only what is drawn moves, in both senses."""

from __future__ import annotations

import torch

from ....methods.structure.lonas import LoNAS
from ...laws.base import must
from ..terms import SIZES, Terms

RANKS, ALPHA, STEPS = (4, 2, 1), 6.0, 14


class Drawn(Terms):
    """count[site] of the terms take part."""

    count = dict.fromkeys(SIZES, max(RANKS))

    def change(self, site: str) -> torch.Tensor:
        found = [torch.outer(t.t["b"], t.t["a"]) for t in self.terms[site][: self.count[site]]]
        return ALPHA / max(RANKS) * torch.stack(found).sum(0)


def check() -> str:
    run, drawn = Drawn(LoNAS(RANKS, (1.0,), ALPHA), STEPS, 1.0, ("B", None, "A")), []
    for t in range(STEPS):
        run.count = {}
        for site in SIZES:
            at = run.entries[site].get("at").tolist()
            run.count[site] = k = int(sum(at))
            must(at == [1.0] * k + [0.0] * (max(RANKS) - k) and k in RANKS, f"step {t}: {at}")
            for i, term in enumerate(run.terms[site]):
                term.moves = i < k
        run.step(t)
        run.agree(f"step {t}")
        drawn.append(run.count["0"])
    must(set(drawn) == set(RANKS), f"ranks drawn: {drawn}")
    return f"{STEPS} steps, ranks drawn {drawn}"
