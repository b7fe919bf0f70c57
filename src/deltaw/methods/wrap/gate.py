"""Gate: a learned number in front of a delta."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Map
from ...sites import Site
from ...spec import METHODS, Declared, Method, Param, Start, Tensors, constant, last, method, scale_of
from ..inside import around, drawn, is_base, linear, scaled


@method(paper="arXiv:2003.04887", start="rounding", claims=("a gate that starts at 0 lets very deep stacks train fast",))
class Gate(Method):
    """y = W x + b0 + gate · (D x + e), D and e the changes that `inner` makes of weight and bias; gate a trained number a site.

    g0 = 1, the default: the inner start is kept. g0 = 0 (ReZero): the gate alone makes the identity, so every trained tensor
    that would start at zero is drawn instead, ~ U(±1/sqrt fan-in); with both at zero neither would get a gradient, ever.
    Count: one more than `inner`. Merges, and has the factors of D. Source: Bachlechner et al. 2020 (residual branches).
    Trap: Flamingo and LLaMA-Adapter use tanh(gate) at 0, the same slope there, but bounded.

    >>> from deltaw.methods import Gate, LoRA
    >>> Gate(LoRA(r=4)).params(10, 6)["gate"].shape
    ()
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())
    g0: float = 1.0
    scale = property(lambda self: self.g0 * scale_of(self.inner))

    def params(self, m: int, n: int) -> Declared:
        return self._gated((m, n))

    def declare(self, site: Site) -> Declared:
        return self._gated(site)

    def _gated(self, where: Any) -> Declared:
        out = dict(linear("gate", self.inner, where, "gate", gated=True))
        own = {k: p for k, p in out.items() if isinstance(p, Param)}
        if not any(p.train for p in own.values()):  # nothing is changed here: there is nothing to gate
            return out
        if self.g0 == 0.0:
            out |= {k: drawn(p) for k, p in own.items() if p.train}
        moving = [k for k, p in own.items() if p.ruled]
        return {**out, "gate": Param((), last(lambda *a: self._open(moving, *a)))}

    def _open(self, moving: list[str], start: Start, shape: tuple[int, ...]) -> Tensor:
        if self.g0 == 0.0 and is_base("gate", self.inner, start, moving):
            raise SpecError(f"{start.name}: gate and delta both start at 0, so neither gets a gradient; use g0 = 1")
        return constant(self.g0)(start, shape)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return around("gate", self.inner, L, p, lambda V: scaled(L, V, p.gate) if "gate" in p.names() else V)
