"""At: a delta at some positions of a sequence only."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ...errors import SpecError
from ...ops import Affine, Map
from ...spec import METHODS, Declared, Method, Tensors, method
from ..gating import Gated, places


@method(paper="arXiv:2404.03592")
class At(Method):
    """y = inner(x) at the tokens that `positions` picks, y = W x + b, bit for bit, at all others. No tensors of its own.

    positions: "f7+l7" the first and the last 7 tokens of the prompt (each at most half of it, padding not counted),
    "f7", "l7", "all", or "after 12 57": from the last occurrence of these token ids on. With a key/value cache the prompt
    is what the first pass over it brings: tokens decoded later are none of its first or last ones, and come after an
    invocation that it held. In training the prompt ends at the first label.
    One intervention for both ends is At(ReFT(), "f7+l7"); two are two adapters, "f7" and "l7", live together.
    Source: Wu et al. 2024 and pyreft's position strings. Count: that of `inner`. Does not merge.
    Trap: "f7+l7" of a prompt of 5 tokens edits 4 of them (2 + 2), as pyreft does.

    >>> from deltaw.methods import At, ReFT
    >>> sorted(At(ReFT(r=2), positions="f1+l1").params(6, 6))
    ['U', 'Wp', 'c', 'here']
    """

    inner: Method = field(default_factory=lambda: METHODS["reft"]())
    positions: str = "f1+l1"

    def __post_init__(self) -> None:
        for word in ("sites", "start"):  # as what it holds
            object.__setattr__(self, word, getattr(self.inner, word))

    def params(self, m: int, n: int) -> Declared:
        return {**self.inner.params(m, n), "here": places(self.positions)}

    def declare(self, site: Any) -> Declared:
        if site.kind not in ("linear", "conv1d_hf", "opaque", "embedding", "stream"):
            raise SpecError(f"{site.name}: a {site.kind} does not see single tokens, so no positions can be picked there")
        return {**self.inner.declare(site), "here": places(self.positions)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Gated(L, self.inner.layer(L, p), p.here)
