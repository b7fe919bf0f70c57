"""Drop: dropout on the input of a delta."""

from __future__ import annotations

from dataclasses import field

from ...errors import SpecError
from ...fused import Dropped
from ...ops import Affine, Map, delta
from ...sites import Site
from ...spec import METHODS, Declared, Method, Tensors, method
from ..inside import around, linear


@method(paper="(dropout, as LoRA and HF PEFT apply it)")
class Drop(Method):
    """y = W x + b + D dropout(x) in training, y = W x + b + D x in evaluation and exports; D is the delta of `inner`.

    No tensors of its own. What `inner` does to the bias stays, without dropout. Trap: PEFT's DoRA with dropout is
    Drop(DoRA()), not DoRA(Drop()): W sees dropout(x) too.

    >>> from deltaw.methods import Drop, LoRA
    >>> sorted(Drop(LoRA(r=4), p=0.1).params(10, 6))
    ['A', 'B']
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())
    p: float = 0.1

    def params(self, m: int, n: int) -> Declared:
        return linear("drop", self.inner, (m, n))

    def declare(self, site: Site) -> Declared:
        if not 0.0 <= self.p < 1.0 or site.kind == "expert":  # experts are rebuilt as weights and never see their input
            raise SpecError(f"{site.name}: p = {self.p} of [0, 1) cannot be dropped from the input of this {site.kind}")
        return linear("drop", self.inner, site, gated=True)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return around("drop", self.inner, L, p, lambda V: self.dropped(L, V, p))

    def dropped(self, L: Affine, V: Affine, p: Tensors) -> Affine:
        return Affine(L.op + Dropped(delta(V.op, L.op), self.p), V.bias) if p.training and self.p else V
