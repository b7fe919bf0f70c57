"""Drop: dropout on the input of a delta."""

from __future__ import annotations

from dataclasses import field

from ...errors import SpecError
from ...fused import Dropped
from ...ops import Affine, Map, Op, delta
from ...sites import Site
from ...spec import METHODS, Declared, Method, Tensors, method
from ..gating import Gated


@method(paper="(dropout, as LoRA and HF PEFT apply it)")
class Drop(Method):
    """y = W x + b + D dropout(x) in training, y = W x + b + D x in evaluation and exports; D is the delta of `inner`.

    No tensors of its own. Trap: PEFT's DoRA with dropout is Drop(DoRA()), not DoRA(Drop()): W sees dropout(x) too.

    >>> from deltaw.methods import Drop, LoRA
    >>> sorted(Drop(LoRA(r=4), p=0.1).params(10, 6))
    ['A', 'B']
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())
    p: float = 0.1

    def params(self, m: int, n: int) -> Declared:
        return self.inner.params(m, n)

    def declare(self, site: Site) -> Declared:
        if not 0.0 <= self.p < 1.0 or site.kind == "expert":  # experts are rebuilt as weights and never see their input
            raise SpecError(f"{site.name}: p = {self.p} of [0, 1) cannot be dropped from the input of this {site.kind}")
        return self.inner.declare(site)

    def layer(self, L: Affine, p: Tensors) -> Map:
        M = self.inner.layer(L, p) if type(self.inner).weight is Method.weight else None
        if not isinstance(M, Gated) or not isinstance(M.L, Affine):
            return Affine(self.weight(L.op, p), L.bias)
        dropped = L.op + Dropped(delta(M.L.op, L.op), self.p) if p.training and self.p else M.L.op
        return Gated(L, Affine(dropped, M.L.bias), M.here)

    def weight(self, W: Op, p: Tensors) -> Op:
        V = self.inner.weight(W, p)
        return W + Dropped(delta(V, W), self.p) if p.training and self.p else V
