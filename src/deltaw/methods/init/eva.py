"""EVA: A reads what varies most in a layer's input, and the layers that vary most get the ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import ShapeError
from ...spec import Start, Tensors
from . import init, innermost, two_factors


@init(paper="arXiv:2410.07170", needs=("components",))
class EVA:
    """A = the r leading principal components of the layer's input tokens, B = 0: identity at step 0, W stays.

    Ranks: every component of every layer is a candidate, up to rho r of a layer; the sum of all r goes to those with the
    largest share of their layer's variance. A layer may end up with none, and loses its adapter; s stays as it was.
    whiten: row i of A is divided by sqrt(singular value i). The probe counts the tokens that carry a label, by incremental
    PCA, and stops when every component that would be used has kept its direction (cosine >= tau) in the last batch.
    Source: Paischer et al. 2024; as in HF PEFT, whose sketch is random where this one is seeded.
    Trap: rows of A have norm 1 while a LoRA's own are near sqrt(1 / 3): compare at equal learning rates with care.
    """

    rho: float = 2.0
    tau: float = 0.99
    whiten: bool = False

    keeps_scale = True

    def components(self, r: int) -> int:
        """How many the probe has to look for at a site of rank r."""
        return round(r * self.rho)

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Tensor]]) -> dict[str, int]:
        method: dict[str, Any] = {s.name: innermost(s.method) for s in starts}
        shares = [
            (v, s.name) for s in starts for v in stats[s.name]["share"][: self.components(method[s.name].r)].tolist()
        ]
        chosen = sorted(shares, key=lambda pair: -pair[0])[: sum(m.r for m in method.values())]
        return {name: sum(other == name for _, other in chosen) for name in method}

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, _ = two_factors(start, p)
        r, V = A.shape[0], stats["components"].to(A)
        if len(V) < r:
            raise ShapeError(
                f"{start.name}: r = {r}, and the probe has found {len(V)} components of its input; probe more tokens"
            )
        A.copy_(V[:r] / stats["singular"][:r, None].to(A).sqrt() if self.whiten else V[:r])
        B.zero_()
