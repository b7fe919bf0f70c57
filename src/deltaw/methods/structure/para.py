"""PaRa: a learned subspace of the outputs is taken out of the weight."""

from __future__ import annotations

from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method, normal
from ..subspace import Edited, Kind, fits, pair


@method(
    paper="arXiv:2406.05641",
    start="none: a subspace is missing from the first step on; no choice of P gives the base's output back",
    claims=("closer to the target images than LoRA with half its parameters",),
)
class PaRa(Method):
    """W' = W - Q Kᵀ W; P (m, r) trained. "qr": Q = K = the orthonormal factor of P, so W' has r dimensions of outputs less.

    "relu": Q = P, K = relu(P), HF PEFT's default. P ~ N(0, 0.02²). y = z - Q Kᵀ z with z = W x: 2 r m operations a token.
    Count: r m. Exact LoRA rank: r. Source: Chen et al. 2024, abstract only: that its form is "qr" is our
    reading, since the rank of W' falls by r only then; formula as in HF PEFT's DEFT with para=True.
    Trap: the bias is not reduced. "qr" knows no strength: any P takes r whole dimensions.

    >>> from deltaw.methods import PaRa
    >>> PaRa(r=4).params(10, 6)["P"].shape
    (10, 4)
    """

    r: int = 8
    decomposition: Kind = "qr"

    def params(self, m: int, n: int) -> Declared:
        fits("para", self.r, m)
        return {"P": Param((m, self.r), normal(0.02))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return Edited(W, *pair(p.P, self.decomposition))
