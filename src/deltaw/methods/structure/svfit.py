"""SVFit: the leading singular values of W are trained."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method
from ..frames import singular


@method(paper="arXiv:2409.05926", claims=("better than LoRA with a sixteenth of its parameters",))
class SVFit(Method):
    """W' = W + U_r diag(dsigma) V_rᵀ, y = W' x + b. U (m, r) and Vt (r, n), frozen, lead W = U diag(sigma) Vᵀ.

    dsigma (r,) is what is trained: the paper's sigma is sigma_W + dsigma, its residual W - U_r diag(sigma_W) V_rᵀ is
    in W. Start: dsigma = 0, the base's first output. Count: r. Exact LoRA rank: r. r (m + n) operations a token.
    Source: Sun et al. 2024. The paper keeps the values that make up 99 % of the spectrum (nearly all of them); it
    has no code and names no clamp or scale, so there is none here: a value may change its sign or its place.
    Trap: training sigma itself under weight decay would shrink W; decay of dsigma only pulls back to W.

    >>> from deltaw.methods import SVFit
    >>> [(k, p.shape) for k, p in SVFit(r=4).params(10, 6).items() if p.train]
    [('dsigma', (4,))]
    """

    r: int = 128

    def params(self, m: int, n: int) -> Declared:
        return {"dsigma": Param((self.r,)), **singular("r", self.r, m, n)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(p.U, p.dsigma, p.Vt)
