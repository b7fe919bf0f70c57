"""DoRA: weight-decomposed adaptation, over any delta."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Chain, Diag, Map, chain, row_norm
from ...sites import Site
from ...spec import METHODS, Declared, Method, Param, Start, Tensors, last, method
from ..inside import affine, linear


@method(paper="arXiv:2402.09353", start="rounding", claims=("gains over LoRA are largest at small r",))
class DoRA(Method):
    """W' = diag(g / c) V, V = W + delta, c_i = |V_i,:| one norm per output row, y = W' x + b.

    `inner` is the delta: LoRA by default, any linear method in its place. g (m,) trained besides the inner tensors.
    c is recomputed in every forward and carries no gradient. For a low-rank delta it costs 2 r m n a step and no
    m x n temporary. Start: g = row norms of V, hence the base up to rounding. Not a low-rank update.
    Source: Liu et al. 2024.
    Trap: the paper and PEFT say "column-wise"; the norm is over the inputs of one output. The bias is not rescaled. A
    delta that only rescales rows is refused: c would cancel it.

    >>> from deltaw.methods import DoRA, VeRA
    >>> sorted(DoRA(VeRA(r=4)).params(10, 6))
    ['A', 'B', 'b', 'd', 'g']
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())

    def params(self, m: int, n: int) -> Declared:
        return self._and_norms((m, n), m)

    def declare(self, site: Site) -> Declared:
        return self._and_norms(site, site.shape[0])

    def _and_norms(self, where: Any, m: int) -> Declared:
        def norms(start: Start, _: tuple[int, ...]) -> Tensor:
            return row_norm(self._direction(Affine(start.W), start.p).op)

        return {**linear("dora", self.inner, where, "g"), "g": Param((m,), last(norms))}

    def _direction(self, L: Affine, p: Tensors) -> Affine:
        V = affine("dora", self.inner, L, p)
        if isinstance(V.op, Chain) and isinstance(V.op.parts[0], Diag):
            raise SpecError(f"dora divides every row by its norm, which cancels the row scaling of {self.inner!r}")
        return V

    def layer(self, L: Affine, p: Tensors) -> Map:
        V = self._direction(L, p)
        norm = row_norm(V.op).detach()
        return Affine(chain(p.g / norm.clamp_min(torch.finfo(norm.dtype).tiny), V.op), V.bias)  # a row of zeros stays one
