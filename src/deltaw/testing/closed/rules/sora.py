"""SoRA's threshold by hand, entry by entry, with the penalty of the gates."""

from __future__ import annotations

import torch

from ....methods.structure.sora import SoRA
from ...laws.base import must
from ..terms import Terms

STEPS = 12


def check() -> str:
    found = []
    for lam, by in ((0.0, 0.05), (2.0, 0.03)):
        run = Terms(SoRA(4, 8.0, lam, by), STEPS, 2.0)
        for t in range(STEPS):
            gates = [term.t["g"] for term in run.all()]
            run.step(t, (lambda gates=gates, lam=lam: lam * torch.stack(gates).abs().mean()) if lam else None)
            for term in run.all():
                g = float(term.t["g"])
                term.t["g"] = torch.tensor(0.0 if abs(g) <= by else g - by if g > 0 else g + by, dtype=torch.float64)
            run.agree(f"lam {lam}, step {t}")
        found.append(sum(not float(term.t["g"]) for term in run.all()))
    must(all(found), f"no gate became 0: {found}")
    return f"{STEPS} steps, gates at 0: {found}"
