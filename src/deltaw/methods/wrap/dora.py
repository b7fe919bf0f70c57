"""DoRA: weight-decomposed adaptation, over any delta."""

from __future__ import annotations

from dataclasses import field

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Op, chain, row_norm
from ...sites import Site
from ...spec import METHODS, Declared, Method, Param, Start, Tensors, last, method, weight_alone


@method(paper="arXiv:2402.09353", start="rounding", claims=("gains over LoRA are largest at small r",))
class DoRA(Method):
    """W' = diag(g / c) V, V = W + delta, c_i = |V_i,:| one norm per output row, y = W' x + b.

    `inner` is the delta: LoRA by default, any weight method in its place. g (m,) trained besides the inner tensors.
    c is recomputed in every forward and carries no gradient. For a low-rank delta it costs 2 r m n a step and no
    m x n temporary. Start: g = row norms of V, hence the base up to rounding. Not a low-rank update.
    Source: Liu et al. 2024, sections 4.1-4.3.
    Trap: the paper and PEFT say "column-wise"; the norm is over the inputs of one output. The bias is not rescaled.

    >>> from deltaw.methods import DoRA, VeRA
    >>> sorted(DoRA(VeRA(r=4)).params(10, 6))
    ['A', 'B', 'b', 'd', 'g']
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())

    def params(self, m: int, n: int) -> Declared:
        return self._and_norms(weight_alone(self.inner, "dora").params(m, n), m)

    def declare(self, site: Site) -> Declared:
        return self._and_norms(weight_alone(self.inner, "dora").declare(site), site.shape[0])

    def _and_norms(self, inner: Declared, m: int) -> Declared:
        def norms(start: Start, _: tuple[int, ...]) -> Tensor:
            return row_norm(self.inner.weight(start.W, start.p))

        if "g" in inner:
            raise SpecError(f"{self.inner} has a tensor 'g' already: where it sets the norms of the rows, DoRA adds nothing")
        return {**inner, "g": Param((m,), last(norms))}

    def weight(self, W: Op, p: Tensors) -> Op:
        V = self.inner.weight(W, p)
        norm = row_norm(V).detach()
        return chain(p.g / norm.clamp_min(torch.finfo(norm.dtype).tiny), V)  # a row of zeros stays one
