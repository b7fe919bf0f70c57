"""LIFT's changes of entries by hand: what leaves stays as it is, what stays keeps its moments, what comes starts with none."""

from __future__ import annotations

import torch

from ....methods.structure.lift import LIFT
from ...laws.base import close, must
from ..entries import SIZES, Entries
from ..hand import triplets

K, RANK, EVERY, STEPS = 1, 2, 4, 20


def check() -> str:
    run, changed = Entries(LIFT(K, RANK, EVERY)), 0
    for t in range(STEPS + 1):
        if t:
            run.step(t)
        if t % EVERY == 0:
            for s, (m, n) in SIZES.items():
                U, sigma, V = triplets(run.base[f"{s}.weight"] + run.D[s])
                near = (U[:, :RANK] * sigma[:RANK] @ V[:RANK]).abs().flatten().tolist()
                best = sorted(range(m * n), key=lambda i: -near[i])[: K * (m + n)]
                old = run.chosen[s]
                run.chosen[s] = torch.zeros(m * n).double().index_fill(0, torch.tensor(best), 1.0).view(m, n)
                if t:
                    changed += int((old * (1 - run.chosen[s])).sum())
                    for word in "mv":
                        run.state[s][word] = run.state[s][word] * old * run.chosen[s]
        for s, entry in run.adapted.entries().items():
            got = torch.zeros(run.D[s].numel()).double()
            got[entry.get("I0")], got[entry.get("I")] = entry.get("v0").detach(), entry.get("v").detach()
            close(f"step {t}: D of {s}", got, run.D[s].flatten(), 1e-9)
            must(bool(run.chosen[s].flatten()[entry.get("I")].all()), f"step {t}: other entries of {s} are trained")
    must(changed > 0, "the choice never changed")
    return f"{STEPS} steps, {changed} entries left the choice"
