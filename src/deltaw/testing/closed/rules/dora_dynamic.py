"""DoRA's dynamic ranks by hand: norms of dense terms, the penalty as variances, the lowest gated off."""

from __future__ import annotations

import torch

from ....methods.structure.dora_dynamic import DoRADynamic
from ...laws.base import must
from ..terms import SIZES, Terms

R, TARGET, EVERY, BETA, ETA, STEPS = 5, 3, 3, 0.8, 0.3, 24


def check() -> str:
    method = DoRADynamic(R, 4.0, TARGET, EVERY, BETA, ETA, 0.25, 0.25)
    run, counts = Terms(method, STEPS, 4.0 / R), []
    begin, end, dead = 6, 18, []

    def variances() -> torch.Tensor:
        many = [x for term in run.all() for x in (term.t["b"], term.t["a"])]
        return ETA * torch.stack([(x - x.mean()).square().sum() / (len(x) - 1) for x in many]).mean()

    for t in range(STEPS):
        run.step(t, variances if t <= end else None)
        for site in SIZES:
            whole = run.change(site).norm() / run.scale[site]
            for term in run.terms[site]:
                share = (term.t["g"] * torch.outer(term.t["b"], term.t["a"])).norm() / (whole + 1e-8)
                term.memory["S"] = BETA * term.memory.get("S", 0.0) + (1 - BETA) * share
        if begin <= t <= end and ((t - begin) % EVERY == 0 or t == end):
            p = (t - begin) / (end - begin)
            count = max(int((2 * R - 2 * TARGET) * p**3), 1)
            dead = sorted(run.all(), key=lambda term: float(term.memory["S"]))[:count]
        if t > end or (begin <= t and ((t - begin) % EVERY == 0 or t == end)):
            for term in dead:
                term.t["g"] = 0 * term.t["g"]
        run.agree(f"step {t}")
        counts.append(sum(bool(term.t["g"]) for term in run.all()))
    must(counts[-1] == 2 * TARGET and counts[begin] == 2 * R - 1, f"live terms by step: {counts}")
    return f"{STEPS} steps, live terms {counts[0]} to {counts[-1]}"
