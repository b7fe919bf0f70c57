"""DyLoRA by hand: the scale alpha / b, what moves, and draws that are spread over 1 .. r."""

from __future__ import annotations

import torch

from ....methods.structure.dylora import DyLoRA
from ...laws.base import must
from ..terms import SIZES, Terms

R, ALPHA, STEPS = 4, 6.0, 16


class Drawn(Terms):
    """count of R terms take part; frozen: in the gradient only the last of them."""

    count, frozen = R, True

    def change(self, site: str) -> torch.Tensor:
        out = torch.zeros(SIZES[site], dtype=torch.float64)
        for i, term in enumerate(self.terms[site][: self.count]):
            still = self.frozen and i != self.count - 1
            b, a = (term.t[w].detach() if still else term.t[w] for w in "ba")
            out = out + ALPHA / self.count * torch.outer(b, a)
        return out


def check() -> str:
    drawn = []
    for frozen in (True, False):
        run = Drawn(DyLoRA(R, ALPHA, frozen=frozen), STEPS, 1.0, ("B", None, "A"))
        run.frozen = frozen
        for t in range(STEPS):
            at = [run.entries[k].get("at").tolist() for k in SIZES]
            run.count = int(sum(at[0]))
            must(at[0] == at[1] == [1.0] * run.count + [0.0] * (R - run.count) and run.count >= 1, f"step {t}: {at}")
            for k in SIZES:
                for i, term in enumerate(run.terms[k]):
                    term.moves = i == run.count - 1 if frozen else i < run.count
            run.step(t)
            run.agree(f"frozen {frozen}, step {t}")
            drawn.append(run.count)
    must(set(drawn) == set(range(1, R + 1)), f"ranks drawn: {drawn}")
    return f"{2 * STEPS} steps, ranks drawn {drawn[:STEPS]}"
