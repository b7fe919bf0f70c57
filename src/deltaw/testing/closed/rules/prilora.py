"""PRILoRA's pruning by hand, row by row."""

from __future__ import annotations

from ....methods.structure.prilora import PRILoRA
from ...laws.base import must
from ..terms import SIZES, Terms

STEPS, EVERY, SHARE, BETA = 9, 3, 0.5, 0.9


def check() -> str:
    run, zeros = Terms(PRILoRA(3, 6.0, EVERY, SHARE), STEPS, 2.0, ("B", None, "A")), []
    mean = {site: [0.0] * n for site, (_, n) in SIZES.items()}
    for t in range(1, STEPS + 1):
        run.step(t)
        for site, x in mean.items():
            X = run.inputs[site].detach()
            mean[site] = x = [BETA * v + (1 - BETA) * float(X[:, j].square().sum()) ** 0.5 for j, v in enumerate(x)]
            if t % EVERY == 0:
                for term in run.terms[site]:
                    a = term.t["a"].tolist()
                    lowest = sorted(range(len(a)), key=lambda j: abs(a[j]) * x[j])[: int(SHARE * len(a))]
                    term.t["a"][lowest] = 0.0
        run.agree(f"step {t}")
        zeros.append(sum(int((term.t["a"] == 0).sum()) for term in run.all()))
    must(zeros[EVERY - 1] == zeros[-1] == 3 * (3 + 2) and not zeros[0], f"zeros by step: {zeros}")
    return f"{STEPS} steps, zeros {zeros}"
