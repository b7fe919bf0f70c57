"""The lottery by hand: train every entry, keep those of all sites that moved most, rewind, train these."""

from __future__ import annotations

import torch

from ....methods.structure.lt_sft import LTSFT
from ...laws.base import must
from ..entries import SIZES, Entries

KEEP, FIRST, STEPS = 0.2, 4, 9


def check() -> str:
    for l1 in (0.0, 0.5):
        run = Entries(LTSFT(KEEP, FIRST, l1))
        total = sum(m * n for m, n in SIZES.values())
        for t in range(1, STEPS + 1):
            run.step(t, l1 / total)
            if t == FIRST:
                moved = sorted((abs(float(v)), s, i) for s, D in run.D.items() for i, v in enumerate(D.flatten()))[::-1]
                kept = {(s, i) for _, s, i in moved[: int(KEEP * total)]}
                for s, D in run.D.items():
                    flags = [float((s, i) in kept) for i in range(D.numel())]
                    run.chosen[s] = torch.tensor(flags, dtype=D.dtype).view_as(D)
                    run.D[s], run.state[s] = torch.zeros_like(D), {}
            run.agree(f"l1 {l1}, step {t}")
        left = [int(c.sum()) for c in run.chosen.values()]
        must(sum(left) == 10 and all(left), f"entries kept: {left}")
    return f"{STEPS} steps twice, entries kept {left}"
