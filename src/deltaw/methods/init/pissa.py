"""PiSSA: start from the principal singular triplets of W."""

from __future__ import annotations

from torch import Tensor

from ...ops import Op, chain
from ...spec import Start, Tensors
from ..leading import leading
from . import init, sketch, two_factors


@init(paper="arXiv:2404.02948", shifts=True, needs=("weight",))
class PiSSA:
    """B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_rᵀ from W = U S Vᵀ; the base gives up s B A, so step 0 is W.

    The base itself is not changed: -s B0 A0 is a constant kept with the delta, and the export is a LoRA of rank 2 r.
    niter: that many subspace iterations on 2 r columns instead of LAPACK's SVD; B A is then close to the principal part, and
    step 0 is W all the same. Source: Meng et al. 2024. Trap: the SVD of a half-precision W is taken in float32.
    """

    niter: int | None = None

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> Op:
        B, A, s = two_factors(start, p)
        r = A.shape[0]
        start.room(r)
        U, S, V = start.svd(r) if self.niter is None else leading(start.dense(), r, sketch(start), self.niter)
        root = (S / s).sqrt()
        B.copy_(U * root)
        A.copy_(root[:, None] * V)
        return chain(-s * B, A.clone())
