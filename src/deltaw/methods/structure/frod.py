"""FRoD: a sparse rotation between W's own basis and one that all layers of a kind share."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..joint import in_basis, kind_of, off_diagonal, shared_basis


@method(paper="arXiv:2512.23485", start="rounding", claims=("matches full fine-tuning with 1.72 % of the parameters",))
class FRoD(Method):
    """W' = U (diag(Lambda) + S) Vᵀ, W = U diag(Lambda0) Vᵀ. U (m, n), unit columns; V (n, n) shared by a category of sites.

    Trained: Lambda (n,) and s (nnz,), the values of S at the off-diagonal places I (nnz,), the same for a category;
    nnz = rate n². Frozen: U, V. A category is a name's end and n, e.g. every self_attn.q_proj.
    V: with the QR of the stacked W_l, Q in slices Q_l, T = mean_l (Q_lᵀ Q_l + ridge I)⁻¹ = E D Eᵀ: V = Rᵀ E (right singular
    vectors of a stack with fewer rows than n). Start: Lambda = Lambda0, s = 0: the base up to rounding.
    Count: n + nnz. W itself is not used after the start; 2 n² + m n operations a token. Not low rank.
    Source: Wan et al. 2026, as HF PEFT has it. Trap: V depends on which layers are adapted, so it is stored, as large as they are.

    >>> from deltaw.methods import FRoD
    >>> [(k, v.shape) for k, v in FRoD(rate=0.1).params(10, 6).items() if v.train]
    [('Lambda', (6,)), ('s', (3,))]
    """

    rate: float = 0.01
    ridge: float = 1e-3
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        return self.among((), "model", m, n)

    def declare(self, site: Site) -> Declared:
        kind, (m, n) = kind_of(site.name), site.shape
        alike = tuple(s for s in site.peers or [site] if kind_of(s.name) == kind and s.shape[1] == n)
        return self.among(alike, f"{kind}-{n}", m, n)

    def among(self, sites: tuple[Site, ...], scope: str, m: int, n: int) -> Declared:
        most = n * (n - 1)
        nnz = min(max(int(n * n * self.rate), 1), most) if self.rate > 0 else 0

        def both(start: Start) -> Tensor:  # U diag(Lambda)
            return in_basis(start.W, start.p.V)

        return {
            "V": Param((n, n), lambda start, _: shared_basis([s.leaf().op for s in sites], self.ridge), False, scope),
            "I": Param((nnz,), lambda start, _: off_diagonal(start.choose(nnz, most), n), False, scope, self.seed, torch.int64),
            "U": Param((m, n), last(lambda start, _: torch.nn.functional.normalize(both(start), dim=0)), False),
            "Lambda": Param((n,), last(lambda start, _: both(start).norm(dim=0))),
            "s": Param((nnz,)),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        n = W.shape[1]
        core = torch.diag(p.Lambda).flatten().index_copy(0, p.I, p.s).view(n, n)
        return chain(p.U, core, p.V.mT)
