"""Arrow: trained LoRAs are experts, and each expert's own leading direction is its router."""

from __future__ import annotations

from ...errors import SpecError
from ...ops import Affine, Map
from ...spec import Declared, Fill, Method, Param, Tensors, last, method
from ..routing import Prototyped, banks, prototypes


@method(
    paper="arXiv:2405.11157",
    start="none: the first output is a mixture of trained experts",
    claims=("routes among adapters it never trained with, near an oracle's choice",),
)
class Arrow(Method):
    """y = W x + b + sum_e w_e B_e A_e x; q_e = |<x, v_e>|, v_e the leading right singular vector of B_e A_e; w = softmax(q / tau) over the
    top_k largest q, 0 for the others. Nothing is trained. Banks A (R, n), B (m, R) of the experts with their scales, V (K, n): all from
    deltaw.route(model, experts, method="arrow"), which finds V by power iteration (never m x n).

    Count: 0. Not mergeable. With `general` adapters route subtracts their mean A and mean B from every expert's first (GenKnowSub 2025): that
    is not subtracting their changes. Source: Ostapenko et al. 2024; as HF PEFT's create_arrow_model. Trap: q is not divided by |x|: large
    activations make sharper choices; near-equal singular values make the iteration slow (`rounds`).

    >>> from deltaw.methods import Arrow
    >>> {k: p.shape for k, p in Arrow(ranks=(4, 8), top_k=1).params(10, 6).items()}
    {'A': (12, 6), 'B': (10, 12), 'V': (2, 6)}
    """

    ranks: tuple[int, ...] = (8, 8)
    top_k: int = 2
    tau: float = 1.0
    rounds: int = 15

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.top_k <= len(self.ranks):
            raise SpecError(f"arrow has {len(self.ranks)} experts; top_k must be between 1 and that, found {self.top_k}")
        first: Fill = last(lambda start, _: prototypes(start.p.B, start.p.A, self.ranks, 1))
        return {**banks(m, n, self.ranks), "V": Param((len(self.ranks), n), first, train=False)}

    def filled(self, p: Tensors) -> dict[str, object]:
        """What route sets when the banks hold the experts."""
        return {"V": prototypes(p.B, p.A, self.ranks, self.rounds)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prototyped(L, p.B, p.A, p.V, self.ranks, self.top_k, self.tau)
