"""IncreLoRA's growth by hand: scores from a dense gradient, the reserve as terms, the old terms unchanged under the smaller scale."""

from __future__ import annotations

import torch

from ....methods.structure.increlora import IncreLoRA
from ...laws.base import close, must
from ..hand import adam
from ..terms import RATE, SIZES, Terms

ALPHA, TARGET, H, EVERY, WARM, STEPS, WEIGHT, BETA = 6.0, 4, 1, 3, 2, 24, 0.2, 0.85
Q, EPS = TARGET // 2, 1e-5


class Growing(Terms):
    """With the reserve's terms beside the others; R counts at a site."""

    def __init__(self) -> None:
        super().__init__(IncreLoRA(1, ALPHA, TARGET, H, EVERY, WARM, WEIGHT), STEPS, ALPHA / (1 + 1e-5))
        self.reserve = {k: self.fresh(k, names=("B_r", "c_r", "A_r")) for k in SIZES}
        self.R = dict.fromkeys(SIZES, 1)

    def change(self, site: str) -> torch.Tensor:
        both = [*self.terms[site], *self.reserve[site]]
        return self.scale[site] * sum(t.t["g"] * torch.outer(t.t["b"], t.t["a"]) for t in both)  # type: ignore[return-value]


def check() -> str:
    run, open_, sizes, memory = Growing(), True, [], {k: (torch.zeros(()), torch.zeros(())) for k in SIZES}
    for t in range(STEPS):
        before = {k: run.change(k).detach() for k in SIZES}
        for many in run.reserve.values():
            for term in many:
                term.t["b"].requires_grad_()
                term.t["a"].requires_grad_()
        run.step(t, lambda: WEIGHT * run.orthonormality())
        for many in run.reserve.values():
            for term in many:
                for w in "ba":
                    g = torch.zeros_like(term.t[w]) if term.t[w].grad is None else term.t[w].grad
                    assert g is not None
                    term.t[w] = term.t[w].detach() - adam(g, term.state.setdefault(w, {}), RATE)
        if open_:
            for k, (m, n) in SIZES.items():
                x = (before[k] * run.slopes[k]).abs().sum() / (m * n) ** 0.5
                mean = BETA * memory[k][0] + (1 - BETA) * x
                memory[k] = (mean, BETA * memory[k][1] + (1 - BETA) * (x - mean).abs())
        left = 2 * TARGET - len(run.all())
        if open_ and t > WARM and t % EVERY == 0 and left >= Q:
            best = sorted(SIZES, key=lambda k: -float(memory[k][0] * memory[k][1]))[: min(H, left // Q)]
            for k in best:
                old = run.change(k).detach()
                gain = (run.R[k] + Q + EPS) / (run.R[k] + EPS)
                for term in run.terms[k]:
                    term.t["b"] = term.t["b"] * gain
                    s = term.state["b"]
                    s["m"], s["v"] = s["m"] / gain, s["v"] / gain**2
                for term in run.reserve[k]:
                    term.t["b"] = term.t["b"] * gain
                    term.state = {}
                run.terms[k] += run.reserve[k]
                run.R[k] += Q
                run.scale[k] = ALPHA / (run.R[k] + EPS)
                run.reserve[k] = []
                close(f"step {t}: a jump at {k}", run.change(k), old, 1e-9)
                run.reserve[k] = run.fresh(k, names=("B_r", "c_r", "A_r"))
            left -= Q * len(best)
        if left < Q:
            open_ = False
            for many in run.reserve.values():
                for term in many:
                    term.t["g"] = 0 * term.t["g"]
        run.agree(f"step {t}")
        for k in SIZES:
            for w, got in (("b", run.entries[k].get("B_r").mT), ("a", run.entries[k].get("A_r"))):
                close(f"step {t}: reserve {k}.{w}", got.detach(), torch.stack([term.t[w].detach() for term in run.reserve[k]]), 1e-9)
        sizes.append(len(run.all()))
    must(sizes[0] == 2 and sizes[-1] > 2 * TARGET - Q and not open_, f"terms by step: {sizes}")
    return f"{STEPS} steps, {sizes[0]} to {sizes[-1]} terms"
