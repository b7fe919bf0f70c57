"""CoDyRA's ladder by hand."""

from __future__ import annotations

import torch

from ....methods.structure.codyra import CoDyRA
from ...laws.base import must
from ..terms import Terms

STEPS, KAPPA, RUNGS = 20, 0.2, 4


def check() -> str:
    run, used = Terms(CoDyRA(4, KAPPA, RUNGS, 0.5), STEPS, 1.0), []
    for t in range(STEPS):
        run.step(t)
        p = (t + 1 - STEPS / 2) / (STEPS / 2)
        by = KAPPA * min(int(p * RUNGS), RUNGS - 1) / (RUNGS - 1) if p > 0 else 0.0
        for term in run.all():
            g = float(term.t["g"])
            term.t["g"] = torch.tensor(0.0 if abs(g) <= by else g - by if g > 0 else g + by, dtype=torch.float64)
        run.agree(f"step {t}")
        used.append(round(by, 6))
    must(len(set(used)) == RUNGS and used[-1] == KAPPA, f"thresholds {used}")
    return f"{STEPS} steps, thresholds {sorted(set(used))}"
