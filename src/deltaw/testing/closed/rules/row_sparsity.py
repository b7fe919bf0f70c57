"""RoseLoRA's pruning by hand, vector by vector."""

from __future__ import annotations

import torch

from ....methods.structure.roselora import RoseLoRA
from ...laws.base import must
from ..terms import Terms

STEPS, KAPPA, T_I, T_F, BETA = 10, 0.3, 2, 7, 0.8


def check() -> str:
    run, zeros = Terms(RoseLoRA(3, 6.0, KAPPA, T_I, T_F, BETA), STEPS, 2.0, ("B", None, "A")), []
    for t in range(1, STEPS + 1):
        before = [{w: term.t[w].detach().clone() for w in "ba"} for term in run.all()]
        run.step(t)
        kappa = 1.0 if t < T_I else KAPPA if t >= T_F else KAPPA + (1 - KAPPA) * ((T_F - t) / (T_F - T_I)) ** 3
        for term, old in zip(run.all(), before):
            for w in "ba":
                new = (old[w] * term.memory[f"grad.{w}"]).abs()
                I = term.memory[f"I.{w}"] = BETA * term.memory[f"I.{w}"] + (1 - BETA) * new if t > 1 else new  # noqa: E741
                k = int(len(I) * (1 - kappa))
                if k:
                    least = I.sort().values[k - 1]
                    term.t[w] = torch.where(I < least, torch.zeros_like(I), term.t[w])
        run.agree(f"step {t}")
        zeros.append(sum(int((term.t[w] == 0).sum()) for term in run.all() for w in "ba"))
    must(zeros[-1] > zeros[0] + 10, f"zeros by step: {zeros}")
    return f"{STEPS} steps, zeros {zeros}"
