"""Soft thresholding by hand, entry by entry, of a column at a time."""

from __future__ import annotations

import torch

from ....methods.rules.shrink import Shrink
from ....methods.structure.lora import LoRA
from ....plan import Plan
from ...laws.base import must
from ..terms import Terms

BY, STEPS = 0.015, 12


def check() -> str:
    run, zeros = Terms(Plan(LoRA(4, 8.0), rules=(Shrink("B", BY),)), STEPS, 2.0, ("B", None, "A")), []
    for t in range(STEPS):
        run.step(t)
        for term in run.all():
            new = [max(abs(v) - BY, 0.0) * (1 if v > 0 else -1) for v in term.t["b"].tolist()]
            term.t["b"] = torch.tensor(new, dtype=torch.float64)
        run.agree(f"step {t}")
        zeros.append(sum(int((term.t["b"] == 0).sum()) for term in run.all()))
    must(0 < max(zeros) and min(zeros) < 36, f"entries at 0 by step: {zeros}")
    return f"{STEPS} steps, entries at 0: {zeros}"
