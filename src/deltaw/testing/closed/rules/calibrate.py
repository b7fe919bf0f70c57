"""Calibration by hand: nothing moves while gradients are summed, then the largest are trained with an Adam that has seen nothing."""

from __future__ import annotations

import torch

from ....methods.structure.shira import SHiRA
from ...laws.base import must
from ..entries import SIZES, Entries

R, SEEN, STEPS = 1, 3, 8


def check() -> str:
    for mask in ("grad", "snip"):
        run = Entries(SHiRA(R, mask, SEEN))  # type: ignore[arg-type]
        total = {s: torch.zeros_like(D) for s, D in run.D.items()}
        for t in range(1, STEPS + 1):
            grads = run.step(t, still=t <= SEEN)
            if t <= SEEN:
                must(not any(e.get("v").any() for e in run.adapted.entries().values()), f"step {t}: something moved")
                total = {s: total[s] + G for s, G in grads.items()}
            if t == SEEN:
                for s, (m, n) in SIZES.items():
                    score = (total[s] * (run.base[f"{s}.weight"] if mask == "snip" else 1.0)).abs().flatten().tolist()
                    best = sorted(range(m * n), key=lambda i: -score[i])[: R * (m + n)]
                    run.chosen[s] = torch.zeros(m * n).double().index_fill(0, torch.tensor(best), 1.0).view(m, n)
            if t >= SEEN:
                run.agree(f"{mask}, step {t}")
    return f"{STEPS} steps, chosen after {SEEN}, by |G| and by |W G|"
