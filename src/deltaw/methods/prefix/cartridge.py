"""Cartridge: a trained key/value cache that stands for a long text."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...errors import SpecError
from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Tensors, method, normal


@method(
    paper="arXiv:2506.06266",
    start="none: the cache is attended to from the first step on",
    claims=("as good as the text itself in the context at 38.6 times less memory",),
)
class Cartridge(Method):
    """Every layer attends to v more places with the keys and values [Z0; Z]: f frozen rows, then v - f trained ones.

    Z0 (f, m), Z (v - f, m), a row being K_1 V_1 K_2 V_2 …, m = 2 · layers · kv-heads · head size. Trainable: (v - f) m.
    Start: N(0, 1); the paper's, far better one are the keys and values of the text's first v tokens:
    `deltaw.prefill(adapted, ids)`. Cartridges that are live together stand one behind the other. Does not merge.
    Source: Eyuboglu et al. 2025 (trained by distilling answers about the text, its "self-study").
    Trap: the first place is where attention sinks; trained, it makes training unstable, hence f = 1.

    >>> from deltaw.methods import Cartridge
    >>> {k: p.shape for k, p in Cartridge(v=8).params(48, 6).items()}
    {'Z0': (1, 48), 'Z': (7, 48)}
    """

    sites: ClassVar[str] = "prefix"
    v: int = 512
    f: int = 1

    def params(self, m: int, n: int) -> Declared:
        if not 0 <= self.f < self.v:
            raise SpecError(f"cartridge needs 0 <= f < v; found f = {self.f} frozen of v = {self.v} places")
        frozen = {"Z0": Param((self.f, m), normal(1.0), train=False)} if self.f else {}
        return {**frozen, "Z": Param((self.v - self.f, m), normal(1.0))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prefix(kv=torch.cat([p.Z0, p.Z]) if self.f else p.Z)
