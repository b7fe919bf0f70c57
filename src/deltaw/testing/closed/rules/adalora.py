"""AdaLoRA's schedule by hand, term by term."""

from __future__ import annotations

from ....methods.structure.adalora import AdaLoRA
from ...laws.base import must
from ..terms import Terms

R, TARGET, TINIT, TFINAL, EVERY, STEPS, WEIGHT = 5, 2, 3, 4, 2, 20, 0.2


def check() -> str:
    method = AdaLoRA(R, 4.0, TARGET, TINIT, TFINAL, EVERY, 0.8, 0.7, WEIGHT)
    run, dead, counts = Terms(method, STEPS, 4.0 / (R + 1e-5), ("P", "E", "Q")), [], []
    end, whole, kept = STEPS - TFINAL, 2 * R, 2 * TARGET
    for t in range(STEPS):
        run.step(t, lambda: WEIGHT * run.orthonormality())
        if t < end:
            run.listen(0.8, 0.7)
        if TINIT < t <= end and (t == end or t % EVERY == 0):
            budget = int(kept + (whole - kept) * (1 - (t - TINIT) / (end - TINIT)) ** 3)
            order = sorted(run.all(), key=run.score)
            dead = order[: whole - budget]
        if t >= end or (t > TINIT and t % EVERY == 0):
            for term in dead:
                term.t["g"] = 0 * term.t["g"]
        run.agree(f"step {t}")
        counts.append(sum(bool(term.t["g"]) for term in run.all()))
    must(counts[-1] == kept and len(set(counts)) > 3, f"live terms by step: {counts}")
    return f"{STEPS} steps, live terms {counts[0]} to {counts[-1]}"
